"""Files of variables: `.env` beside a compose file, and a service's `env_file`.

Owns both grammars. `.env` follows compose (quotes, `export`, comments after a blank); `env_file` follows the docker
CLI (`docker run --env-file`: a line is NAME=VALUE as it stands), so that both ways of deploying give a container
the same environment. Must not read files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from overlace.compose.interpolate import BadInterpolation, Lookup, substitute
from overlace.compose.problems import Mark, Problems

_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*(?:=|:\s)\s*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


def parse_dotenv(text: str, file: str, lookup: Lookup, problems: Problems) -> dict[str, str]:
    """The variables of a `.env` file; later lines see earlier ones, `lookup` comes first."""
    found: dict[str, str] = {}

    def see(name: str) -> str | None:
        outer = lookup(name)
        return found.get(name) if outer is None else outer

    at, line = 0, 1
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        row = text[at:end]
        mark = Mark(file, line, 1)
        if not row.strip() or row.lstrip().startswith("#"):
            at, line = end + 1, line + 1
            continue
        match = _ASSIGNMENT.match(row)
        if match is None:
            name = row.strip().removeprefix("export ").strip()
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
                problems.error(mark, "", f'"{row.strip()[:40]}" is no NAME=VALUE')
            at, line = end + 1, line + 1
            continue
        begin = at + match.end()
        quote = text[begin : begin + 1]
        if quote in ("'", '"') and begin < len(text):
            closing = _closing(text, begin + 1, quote)
            if closing < 0:
                problems.error(mark, match[1], f"the value begins with {quote} and no {quote} ends it")
                return found
            value = text[begin + 1 : closing]
            after = text.find("\n", closing)
            after = len(text) if after < 0 else after
            line += text.count("\n", at, after) + 1
            at = after + 1
            if quote == '"':
                value = re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), value, flags=re.S)
        else:
            value = re.split(r"(?:^|\s)#", row[match.end() :], maxsplit=1)[0].strip()
            at, line = end + 1, line + 1
        if quote != "'":
            try:
                value = substitute(value, see)
            except BadInterpolation as error:
                problems.error(mark, match[1], str(error))
        found[match[1]] = value
    return found


def _closing(text: str, at: int, quote: str) -> int:
    while at < len(text):
        if text[at] == "\\" and quote == '"':
            at += 2
            continue
        if text[at] == quote:
            return at
        at += 1
    return -1


def parse_env_file(text: str, file: str, lookup: Lookup, problems: Problems) -> Iterator[tuple[str, str]]:
    """The variables of an `env_file`, in order. A name alone takes the value it has here, if any."""
    for number, row in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        mark = Mark(file, number, 1)
        row = row.lstrip()
        if not row or row.startswith("#"):
            continue
        name, equals, value = row.partition("=")
        if not name or re.search(r"\s", name):
            problems.error(mark, "", f'"{name}" is no name of a variable; write NAME=VALUE')
            continue
        if equals:
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                problems.warn(
                    mark, name, "the quotes are part of the value, as `docker stack deploy` reads it"
                )
            yield name, value
        elif (outer := lookup(name)) is not None:
            yield name, outer
