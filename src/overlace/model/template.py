"""Templates in a service's env, hostname and mounts, `{{.Service.Name}}.{{.Task.Slot}}`, and in secrets and configs.

Owns the placeholders and the part of Go's text/template people use with them: fields, `index`, `join`,
`print`, `printf`, string and number literals, parentheses, pipelines, `{{-` and `-}}`. Pure. Control checks
with it, the agent expands with it. Placeholders and words: swarmkit template/ (context.go, expand.go).
`if`, `else if`, `else` and `end` work with `eq`, `ne`, `and`, `or`, `not`, `len`; loops and variables are refused by
name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from overlace.model.errors import InvalidArgument
from overlace.model.specs import ContainerSpec, Labels, Mount

TEMPLATE_DRIVER = "golang"  # the one there is for secrets and configs (swarmkit template/getter.go)


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What the placeholders stand for. `task_slot` is the node's id where each node has one task,
    as in SwarmKit."""

    service_id: str = ""
    service_name: str = ""
    service_labels: Labels = {}
    node_id: str = ""
    node_hostname: str = ""
    node_os: str = ""
    node_architecture: str = ""
    task_id: str = ""
    task_name: str = ""
    task_slot: str = ""

    def root(self) -> dict[str, Any]:
        return {
            "Service": {
                "ID": self.service_id,
                "Name": self.service_name,
                "Labels": _Map(self.service_labels),
            },
            "Node": {
                "ID": self.node_id,
                "Hostname": self.node_hostname,
                "Platform": {"Architecture": self.node_architecture, "OS": self.node_os},
            },
            "Task": {
                "ID": self.task_id,
                "Name": self.task_name,
                "Slot": self.task_slot or self.node_id,
            },
        }


class _Map(dict[str, str]):
    """A map in Go's sense (any key may be asked for), not one of the context's structs."""


_DEEPEST = 100  # parentheses within parentheses
MAX_EXPANDED = 8 << 20
"""Characters that come of one text: a secret's placeholder is a few bytes, what it stands for half a million."""
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<field>(?:\.[A-Za-z_]\w*)+)
    |(?P<dot>\.)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    |(?P<number>-?\d+)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<mark>[()|])
    |(?P<bad>.)""",
    re.VERBOSE | re.DOTALL,
)
_CONTROL = frozenset(("range", "with", "define", "template", "block", "break", "continue"))


Functions = Mapping[str, Callable[[str], str]]
"""Functions of one text by name: what `{{secret "x"}}` and its like give. They raise InvalidArgument."""


def expand(text: str, context: Context, functions: Functions | None = None) -> str:
    """`text` with its placeholders filled in; `functions` are those a secret's or config's text has besides.

    Raises InvalidArgument `template: expansion:…` for one that does not parse or names something unknown.
    """
    if "{{" not in text:
        return text
    root = context.root()
    out: list[str] = []
    at = 0
    trim = False

    def value_of(body: str, start: int) -> Any:
        return _Action(text, start, body, functions or {}).value(root)

    branches = _Branches(text, value_of)
    size = 0
    for found in _actions(text):
        literal = text[at : found.start]
        if trim:
            literal = literal.lstrip()
        if branches.active:
            out.append(literal.rstrip() if found.trims_before else literal)
        if branches.control(found.body, found.body_start):
            pass
        elif branches.active and not (found.body.startswith("/*") and found.body.endswith("*/")):
            out.append(_show(value_of(found.body, found.body_start)))
            size += len(out[-1])
            if size > MAX_EXPANDED:
                raise _error(text, found.start, _TOO_LONG, node=found.body.strip()[:40])
        trim = found.trims_after
        at = found.end
    rest = text[at:]
    if "{{" in rest:
        raise _error(text, at + rest.index("{{"), "unclosed action", parsing=True)
    branches.check_ended()
    out.append(rest.lstrip() if trim else rest)
    return "".join(out)


_TOO_LONG = f"the text becomes longer than {MAX_EXPANDED} characters"


class _Found(msgspec.Struct, frozen=True):
    """One `{{…}}` of a text."""

    start: int
    end: int
    body: str
    body_start: int
    trims_before: bool
    trims_after: bool


def _actions(text: str) -> Iterator[_Found]:
    """The actions in order, to the first that is not closed. Each character is looked at once."""
    end = 0
    while (start := text.find("{{", end)) >= 0:
        closed = text.find("}}", start + 2)
        if closed < 0:
            return
        first = start + 2
        before = text.startswith("- ", first, closed)
        first += 2 if before else 0
        after = text.startswith(" -", max(first, closed - 2), closed)
        end = closed + 2
        yield _Found(start, end, text[first : closed - (2 if after else 0)], first, before, after)


class _Branches:
    """Which part of a text counts, between `{{if}}` and `{{end}}`. What does not is not looked at."""

    _FORM = re.compile(r"\s*(if|else|end)\b\s*", re.DOTALL)

    def __init__(self, text: str, value_of: Callable[[str, int], Any]) -> None:
        self._text = text
        self._value_of = value_of
        # whether the whole counts, whether a branch of it was taken, whether its {{else}} was met
        self._open: list[tuple[bool, bool, bool]] = []
        self.active = True

    def control(self, body: str, start: int) -> bool:
        """Follow one action; False when it is none of ours."""
        found = self._FORM.match(body)
        if found is None:
            return False
        word, rest, at = found[1], body[found.end() :], start + found.end()
        if word == "if":
            taken = self.active and self._true(rest, at)
            self._open.append((self.active, taken, False))
            self.active = taken
            return True
        if not self._open:
            raise _error(self._text, start, f"unexpected {{{{{word}}}}}", parsing=True)
        whole, taken, last = self._open.pop()
        if word == "end":
            self._bare(rest, word, at)
            self.active = whole
            return True
        if last:
            raise _error(self._text, start, "unexpected {{else}} after {{else}}", parsing=True)
        self.active = whole and not taken
        if rest.startswith("if") and not rest[2:3].isalnum():
            self.active = self.active and self._true(rest[2:], at + 2)
        else:
            self._bare(rest, word, at)
            last = True
        self._open.append((whole, taken or self.active, last))
        return True

    def _true(self, condition: str, at: int) -> bool:
        return bool(self._value_of(condition, at))

    def _bare(self, rest: str, word: str, at: int) -> None:
        if rest.strip():
            raise _error(self._text, at, f"unexpected {rest.strip()!r} in {word}", parsing=True)

    def check_ended(self) -> None:
        if self._open:
            raise _error(
                self._text, len(self._text), "unexpected EOF: an {{if}} has no {{end}}", parsing=True
            )


def expand_container(spec: ContainerSpec, context: Context) -> ContainerSpec:
    """The spec with env, hostname, mounts, volume labels and driver options expanded.

    Raises InvalidArgument in SwarmKit's words, `expanding env failed: expanding env "A={{.Foo}}": template:
    …`."""
    mounts = [_expand_mount(mount, context) for mount in spec.mounts]
    env = [_expand_env(entry, context) for entry in spec.env]
    with_hostname = _naming("expanding hostname failed", lambda: expand(spec.hostname, context))
    return msgspec.structs.replace(spec, mounts=mounts, env=env, hostname=with_hostname)


def _expand_env(entry: str, context: Context) -> str:
    name, equals, value = entry.partition("=")
    shown = entry.replace('"', '\\"')
    return _naming(
        f'expanding env failed: expanding env "{shown}"', lambda: name + equals + expand(value, context)
    )


def _expand_mount(mount: Mount, context: Context) -> Mount:
    def of(what: str, text: str) -> str:
        shown = text.replace('"', '\\"')
        return _naming(f'expanding mounts failed: expanding {what} "{shown}"', lambda: expand(text, context))

    options = mount.volume_options
    if options is not None:
        driver = options.driver_config
        if driver is not None:
            values = {key: of(f"driver option {key}", value) for key, value in driver.options.items()}
            driver = msgspec.structs.replace(driver, options=values)
        labels = {key: of(f"volume label {key}", value) for key, value in options.labels.items()}
        options = msgspec.structs.replace(options, labels=labels, driver_config=driver)
    return msgspec.structs.replace(
        mount,
        source=of("mount source", mount.source),
        target=of("mount target", mount.target),
        volume_options=options,
    )


def _naming(where: str, make: Callable[[], str]) -> str:
    try:
        return make()
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error.message}") from None


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, _Map):
        return "map[" + " ".join(f"{key}:{value[key]}" for key in sorted(value)) + "]"
    if isinstance(value, dict):
        return "{" + " ".join(_show(member) for member in value.values()) + "}"
    return str(value)


def _error(text: str, at: int, what: str, *, node: str = "", parsing: bool = False) -> InvalidArgument:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1)
    if parsing:
        return InvalidArgument(f"template: expansion:{line}: {what}")
    return InvalidArgument(f'template: expansion:{line}:{column}: executing "expansion" at <{node}>: {what}')


class _Action:
    """What stands between `{{` and `}}`: a pipeline of commands, evaluated as it is read."""

    def __init__(self, text: str, start: int, body: str, functions: Functions) -> None:
        self._text = text
        self._functions = functions
        self._tokens: list[tuple[str, str, int]] = []
        for token in _TOKEN.finditer(body):
            kind = str(token.lastgroup)
            if kind == "space":
                continue
            at = start + token.start()
            if kind == "bad":
                what = "variables" if token[0] == "$" else f"unexpected {token[0]!r}"
                if token[0] == "$":
                    what += " are not supported here"
                raise _error(text, at, f"{what} in command", parsing=True)
            self._tokens.append((kind, token[0], at))
        self._next = 0
        self._depth = 0
        self._end = start + len(body)

    def value(self, root: dict[str, Any]) -> Any:
        if not self._tokens:
            raise _error(self._text, self._end, "missing value for command", parsing=True)
        result = self._pipeline(root)
        if self._next < len(self._tokens):
            _, word, at = self._tokens[self._next]
            raise _error(self._text, at, f'unexpected "{word}" in command', parsing=True)
        return result

    def _pipeline(self, root: dict[str, Any]) -> Any:
        result = self._command(root, ())
        while self._peek() == "|":
            self._next += 1
            result = self._command(root, (result,))
        return result

    def _command(self, root: dict[str, Any], piped: tuple[Any, ...]) -> Any:
        if self._next >= len(self._tokens):
            raise _error(self._text, self._end, "missing value for command", parsing=True)
        kind, word, at = self._tokens[self._next]
        if kind == "word" and word not in ("true", "false"):
            if word in _CONTROL:
                raise _error(
                    self._text, at, f"{{{{{word}}}}} is not supported in service templates", parsing=True
                )
            self._next += 1
            return self._call(word, at, [*self._operands(root), *piped])
        operands = list(self._operands(root))
        if not operands:
            raise _error(self._text, at, f'unexpected "{word}" in command', parsing=True)
        if len(operands) > 1 or piped:
            raise _error(self._text, at, f"can't give argument to non-function {word}", node=word)
        return operands[0]

    def _operands(self, root: dict[str, Any]) -> Iterator[Any]:
        while self._next < len(self._tokens):
            kind, word, at = self._tokens[self._next]
            if word in ("|", ")"):
                return
            self._next += 1
            match kind:
                case "field":
                    yield self._field(root, word, at)
                case "dot":
                    yield root
                case "string":
                    yield _unquote(word)
                case "number":
                    if len(word) > 20 or not -(2**63) <= int(word) < 2**63:
                        raise _error(self._text, at, f"integer overflow: {word[:40]}", parsing=True)
                    yield int(word)
                case "word" if word in ("true", "false"):
                    yield word == "true"
                case "mark":
                    self._depth += 1
                    if self._depth > _DEEPEST:
                        raise _error(self._text, at, "parentheses are nested too deeply", parsing=True)
                    value = self._pipeline(root)
                    self._depth -= 1
                    if self._peek() != ")":
                        raise _error(self._text, at, "unclosed left paren", parsing=True)
                    self._next += 1
                    yield value
                case _:
                    yield self._call(word, at, [])

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _field(self, root: dict[str, Any], chain: str, at: int) -> Any:
        value: Any = root
        where = "*template.Context"
        seen = ""
        for name in chain[1:].split("."):
            seen += f".{name}"
            if isinstance(value, _Map):
                if name not in value:
                    raise _error(self._text, at, f'map has no entry for key "{name}"', node=seen)
                value = value[name]
            elif isinstance(value, dict) and name in value:
                value = value[name]
            else:
                raise _error(self._text, at, f"can't evaluate field {name} in type {where}", node=seen)
            where = "string" if isinstance(value, str) else f"template.{name}"
        return value

    def _call(self, name: str, at: int, arguments: list[Any]) -> Any:
        match name:
            case "index" if len(arguments) == 2 and isinstance(arguments[0], _Map):
                return arguments[0].get(str(arguments[1]), "")
            case "index":
                problem = 'index takes a map and a key, as in index .Service.Labels "tier"'
            case "join" if arguments:
                return self._joined(_show(arguments[0]), arguments[1:], at)
            case "join":
                problem = "join takes a separator and the texts to join"
            case "print":
                return self._joined("", arguments, at)
            case "printf" if arguments:
                return self._printf(str(arguments[0]), arguments[1:], at)
            case "printf":
                problem = "printf takes a format"
            case "eq" | "ne" if len(arguments) >= 2:
                same = any(_show(arguments[0]) == _show(other) for other in arguments[1:])
                return same if name == "eq" else not same
            case "eq" | "ne":
                problem = "missing argument for comparison"
            case "not" if len(arguments) == 1:
                return not arguments[0]
            case "len" if len(arguments) == 1 and isinstance(arguments[0], str | _Map):
                return len(arguments[0])
            case "not" | "len":
                problem = f"{name} takes one value"
            case "and" | "or" if arguments:
                decides = [one for one in arguments[:-1] if bool(one) == (name == "or")]
                return decides[0] if decides else arguments[-1]
            case "and" | "or":
                problem = f"{name} takes values"
            case _ if name not in self._functions:
                raise _error(self._text, at, f'function "{name}" not defined', parsing=True)
            case _ if len(arguments) != 1:
                problem = f'{name} takes one name, as in {name} "x"'
            case _:
                try:
                    return self._functions[name](_show(arguments[0]))
                except InvalidArgument as error:
                    problem = error.message
        raise _error(self._text, at, f"error calling {name}: {problem}", node=name)

    def _joined(self, between: str, values: list[Any], at: int) -> str:
        shown = [_show(value) for value in values]
        if sum(map(len, shown)) + len(between) * len(shown) > MAX_EXPANDED:
            raise _error(self._text, at, _TOO_LONG, node="print")
        return between.join(shown)

    def _printf(self, form: str, arguments: list[Any], at: int) -> str:
        if sum(len(_show(argument)) for argument in arguments) > MAX_EXPANDED:
            raise _error(self._text, at, _TOO_LONG, node="printf")
        left = list(arguments)

        def one(found: re.Match[str]) -> str:
            if found[1] == "%":
                return "%"
            if not left:
                raise _error(
                    self._text, at, "error calling printf: too few values for the format", node="printf"
                )
            value = left.pop(0)
            return '"' + _show(value) + '"' if found[1] == "q" else _show(value)

        made = re.sub(r"%([%svdq])", one, form)
        if left:
            raise _error(
                self._text, at, "error calling printf: too many values for the format", node="printf"
            )
        return made


def _unquote(word: str) -> str:
    if word[0] == "`":
        return word[1:-1]
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda found: escapes.get(found[1], found[1]), word[1:-1])
