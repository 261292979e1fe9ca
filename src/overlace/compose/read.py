"""The tree of a compose file as a project: the top level and its services.

Owns the keys of a service. What a swarm cannot honour is an error or a warning (keys.py), what nobody knows is an
error. Must not read files but through `Files`, nor know the stack's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from overlace.compose.deploy import Deploy, legacy_resources, legacy_restart, read_deploy
from overlace.compose.envfile import parse_env_file
from overlace.compose.interpolate import Lookup
from overlace.compose.keys import LEFT_OUT, REFUSED
from overlace.compose.load import SECTIONS, Files
from overlace.compose.merge import as_list, as_mapping
from overlace.compose.mounts import read_mounts
from overlace.compose.problems import Problems
from overlace.compose.project import CONDITIONS, Dependency, FileUse, NetworkUse, Project, ServiceDef
from overlace.compose.reader import Reader
from overlace.compose.references import check_references
from overlace.compose.resources import read_file, read_network, read_volume
from overlace.compose.shorthand import BadValue, parse_command, parse_port
from overlace.compose.tree import Node, go_text
from overlace.model.specs import (
    ContainerSpec,
    DnsConfig,
    Driver,
    EndpointSpec,
    Healthcheck,
    PortConfig,
    RestartPolicy,
    ServiceSpec,
    TaskSpec,
    Ulimit,
)

_NAME = re.compile(r"[a-zA-Z0-9._-]+")
_VERSION = re.compile(r"3(?:\.\d+)?")
_CAP_WORDS = ("ALL", "RESET")
# as the docker CLI always sends it: both then store the same spec
_NO_PRIVILEGES = {"CredentialSpec": None, "SELinuxContext": None, "NoNewPrivileges": False}


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading a project needs besides the tree."""

    problems: Problems
    files: Files
    lookup: Lookup
    leave_out: bool = False  # refused keys are only named, as the docker CLI does


def read_project(root: Node, reading: Reading) -> Project:
    """Mistakes go to `reading.problems`; check them before using what this returns."""
    top = Reader(root, "", reading.problems)
    version = top.node("version")
    if version is not None:
        text = go_text(version.value) if not isinstance(version.value, dict | list) else ""
        if isinstance(version.value, float | int):
            top.error("version", f'quote it: "{version.text}"')
        elif not _VERSION.fullmatch(text):
            top.error("version", f'"{text}" is not read; write version "3.8" or leave version out')
    found = Project(
        name=top.text("name"),
        services={name: _service(name, one, reading) for name, one in _named(top, "services")},
        networks={name: read_network(name, one) for name, one in top.subs("networks")},
        volumes={name: read_volume(name, one) for name, one in top.subs("volumes")},
        secrets={name: read_file("secret", name, one) for name, one in top.subs("secrets")},
        configs={name: read_file("config", name, one) for name, one in top.subs("configs")},
    )
    if top.node("models") is not None:
        top.error("models", REFUSED["models"])
    top.done((*SECTIONS, "include"))
    check_references(root, found, reading.problems)
    if not found.services and not reading.problems.errors:
        reading.problems.error(root.mark, "services", "there is none; a stack has at least one service")
    return found


def _named(top: Reader, section: str) -> Iterator[tuple[str, Reader]]:
    for name, one in top.subs(section):
        if not _NAME.fullmatch(name):
            one.problems.error(one.mark, one.path, f'"{name}" is no name: letters, digits, . _ and - only')
        yield name, one


def _service(name: str, reader: Reader, reading: Reading) -> ServiceDef:
    deploy = _deploy(reader)
    env = _environment(reader, reading)
    credential, credential_config = _credential_spec(reader.sub("credential_spec"))
    privileges = {**_NO_PRIVILEGES, **credential, **_security(reader)}
    image = reader.text("image")
    if not image:
        build = " (it is not built here: build and push it)" if "build" in reader else ""
        reader.problems.error(reader.mark, reader.at("image"), f"every service needs an image{build}")
    container = ContainerSpec(
        image=image,
        labels=reader.labels("labels"),
        command=_command(reader, "entrypoint"),
        args=_command(reader, "command"),
        hostname=reader.text("hostname"),
        env=sorted(key if value is None else f"{key}={value}" for key, value in env.items()),
        dir=reader.text("working_dir"),
        user=reader.text("user"),
        groups=reader.texts("group_add", numbers=True),
        privileges=privileges,
        init=reader.boolean("init"),
        stop_signal=reader.text("stop_signal"),
        tty=reader.boolean("tty") or False,
        open_stdin=reader.boolean("stdin_open") or False,
        read_only=reader.boolean("read_only") or False,
        stop_grace_period=reader.duration("stop_grace_period"),
        healthcheck=_healthcheck(reader.sub("healthcheck")),
        hosts=_extra_hosts(reader),
        dns_config=_dns(reader),
        isolation=reader.text("isolation"),
        sysctls=reader.labels("sysctls"),
        ulimits=_ulimits(reader),
        oom_score_adj=reader.integer("oom_score_adj", least=-1000) or 0,
        **_capabilities(reader),
    )
    restart = _restart(reader)
    if restart is not None and deploy.restart_policy is not None:
        reader.warn("restart", "left out: deploy.restart_policy is given too, and decides")
    found = ServiceDef(
        name=name,
        mark=reader.mark,
        container=container,
        task=TaskSpec(
            log_driver=_logging(reader.sub("logging")),
            resources=legacy_resources(reader, deploy.resources),
            restart_policy=deploy.restart_policy or restart,
            placement=deploy.placement,
        ),
        service=ServiceSpec(
            labels=deploy.labels,
            mode=deploy.mode,
            update_config=deploy.update_config,
            rollback_config=deploy.rollback_config,
        ),
        endpoint=EndpointSpec(deploy.endpoint_mode, _ports(reader)),
        networks=_networks(reader),
        volumes=read_mounts(reader),
        secrets=list(_file_uses(reader, "secrets")),
        configs=list(_file_uses(reader, "configs")),
        depends_on=_depends_on(reader),
        credential_config=credential_config,
    )
    _name_rest(reader, reading.leave_out)
    return found


def _name_rest(reader: Reader, leave_out: bool) -> None:
    """Every key nobody read, by what it is."""
    for key in reader.left():
        node = reader.root.mapping[key]
        if key in REFUSED:
            if node.value in (None, False, [], {}, "") or (key == "network_mode" and node.value == "bridge"):
                continue  # asks for nothing
            if leave_out:
                reader.warn(key, f"left out: a swarm cannot honour it; {REFUSED[key]}")
            else:
                reader.error(
                    key, f"a swarm cannot honour it; {REFUSED[key]} (--leave-out-unsupported deploys without)"
                )
        elif key in LEFT_OUT:
            reader.warn(key, f"left out: {LEFT_OUT[key]}")
        elif key == "scale":
            reader.error(key, "use deploy.replicas")
        else:
            reader.unknown(key, (*REFUSED, *LEFT_OUT, "extends", "profiles"))


def _deploy(reader: Reader) -> Deploy:
    section = reader.sub("deploy")
    if section is None:
        section = Reader(Node({}, reader.mark), reader.at("deploy"), reader.problems)
    return read_deploy(section)


def _restart(reader: Reader) -> RestartPolicy | None:
    node = reader.node("restart")
    if node is None:
        return None
    if node.value is False:  # `restart: no` of YAML 1.1
        return None
    try:
        return legacy_restart(reader.text("restart"))
    except ValueError as error:
        reader.error("restart", str(error))
        return None


def _command(reader: Reader, key: str) -> list[str]:
    node = reader.node(key)
    if node is None or isinstance(node.value, list):
        return reader.texts(key)
    try:
        return parse_command(reader.text(key))
    except BadValue as error:
        reader.error(key, str(error))
        return []


def _environment(reader: Reader, reading: Reading) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    node = reader.node("env_file")
    if node is not None:
        for number, item in enumerate(as_list(node).items or [node]):
            path = f"{reader.at('env_file')}[{number}]"
            found |= _env_file(item, path, reader.problems, reading)
    for key, value in reader.pairs("environment").items():
        found[key] = reading.lookup(key) if value is None else value
    return found


def _env_file(item: Node, path: str, problems: Problems, reading: Reading) -> dict[str, str | None]:
    required = True
    if isinstance(item.value, dict):
        long = Reader(item, path, problems)
        name, required = long.text("path"), long.boolean("required") is not False
        long.choice("format", ("raw",))
        long.done()
    elif isinstance(item.value, str):
        name = item.value
    else:
        problems.error(item.mark, path, f"a path belongs here, not {item.kind}")
        return {}
    if not required and not reading.files.exists(name):
        return {}
    try:
        text = reading.files.text(name)
    except (OSError, ValueError) as error:
        problems.error(item.mark, path, f"{name} cannot be read: {error}")
        return {}
    return dict(parse_env_file(text, name, reading.lookup, problems))


def _healthcheck(reader: Reader | None) -> Healthcheck | None:
    if reader is None:
        return None
    test = reader.node("test")
    words: list[str] = []
    if test is not None:
        words = reader.texts("test") if isinstance(test.value, list) else ["CMD-SHELL", reader.text("test")]
    disable = reader.boolean("disable")
    if disable and words and words != ["NONE"]:
        reader.error("disable", "given beside test; keep one of them")
    if words and words[0] not in ("NONE", "CMD", "CMD-SHELL", "") and test is not None:
        first = f'a list begins with NONE, CMD or CMD-SHELL, not "{words[0]}"'
        reader.error("test", f"{first}; write a text to have a shell run it")
    found = Healthcheck(
        words,
        reader.duration("interval") or 0,
        reader.duration("timeout") or 0,
        reader.duration("start_period") or 0,
        reader.duration("start_interval") or 0,
        reader.integer("retries") or 0,
    )
    reader.done()
    return Healthcheck(["NONE"]) if disable else found


def _logging(reader: Reader | None) -> Driver | None:
    if reader is None:
        return None
    found = Driver(reader.text("driver"), reader.labels("options"))
    reader.done()
    return found


def _dns(reader: Reader) -> DnsConfig | None:
    found = DnsConfig(
        reader.texts("dns", or_one=True),
        reader.texts("dns_search", or_one=True),
        reader.texts("dns_opt", or_one=True),
    )
    return found if found != DnsConfig() else None


def _extra_hosts(reader: Reader) -> list[str]:
    node = reader.node("extra_hosts")
    if node is None:
        return []
    found = []
    for item in as_list(node, ":").items:
        text = reader.as_text(item, reader.at("extra_hosts"))
        cut = text.find("=") if "=" in text else text.find(":")
        name, address = text[:cut].strip(), text[cut + 1 :].strip()
        if cut < 1 or not address:
            reader.problems.error(item.mark, reader.at("extra_hosts"), f'"{text}" is no NAME:ADDRESS')
            continue
        if address == "host-gateway":
            reader.problems.error(
                item.mark, reader.at("extra_hosts"), "a task has no host-gateway; give an address"
            )
            continue
        found.append(f"{address.removeprefix('[').removesuffix(']')} {name}")
    return found


def _ulimits(reader: Reader) -> list[Ulimit]:
    section = reader.sub("ulimits")
    found = []
    for name, node in sorted(section.root.mapping.items()) if section is not None else ():
        path = f"{reader.at('ulimits')}.{name}"
        if isinstance(node.value, dict):
            both = Reader(node, path, reader.problems)
            soft, hard = both.integer("soft", least=-1), both.integer("hard", least=-1)
            if soft is None or hard is None:
                reader.problems.error(node.mark, path, "give both, soft and hard")
            both.done()
        else:
            soft = hard = reader.as_integer(node, path, least=-1)
        found.append(Ulimit(name, soft or 0, hard or 0))
    return found


def _capabilities(reader: Reader) -> dict[str, Any]:
    """As the docker CLI has it: full names, sorted; what is added is not dropped."""
    add = {_capability(name) for name in reader.texts("cap_add")}
    drop = {_capability(name) for name in reader.texts("cap_drop")}
    add = {"ALL"} if "ALL" in add else add
    drop = {"ALL"} if "ALL" in drop else drop
    return {"capability_add": sorted(add), "capability_drop": sorted(drop - add)}


def _capability(name: str) -> str:
    name = name.strip().upper()
    return name if name in _CAP_WORDS or name.startswith("CAP_") else f"CAP_{name}"


def _security(reader: Reader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, node in reader.items("security_opt"):
        text = reader.as_text(node, path)
        key, _, value = text.replace(":", "=", 1).partition("=")
        if key == "no-new-privileges" and value in ("", "true", "false"):
            found["NoNewPrivileges"] = value != "false"
        else:
            reader.problems.error(
                node.mark, path, f'"{text}" cannot be honoured; a swarm has no-new-privileges:true only'
            )
    return found


def _credential_spec(reader: Reader | None) -> tuple[dict[str, Any], str]:
    if reader is None:
        return {}, ""
    given = {key: reader.text(key) for key in ("config", "file", "registry") if reader.node(key) is not None}
    reader.done()
    if len(given) != 1:
        reader.problems.error(reader.mark, reader.path, "give exactly one of config, file and registry")
        return {}, ""
    ((key, value),) = given.items()
    return {"CredentialSpec": {key.capitalize(): value}}, value if key == "config" else ""


def _ports(reader: Reader) -> list[PortConfig]:
    found: list[PortConfig] = []
    for path, node in reader.items("ports"):
        if isinstance(node.value, dict):
            found += _long_port(Reader(node, path, reader.problems))
            continue
        if isinstance(node.value, bool | float) or node.value is None or isinstance(node.value, list):
            reader.problems.error(
                node.mark, path, f'a port belongs here, not {node.kind}; write "PUBLISHED:TARGET"'
            )
            continue
        try:
            ports, address = parse_port(str(node.value))
        except BadValue as error:
            reader.problems.error(node.mark, path, str(error))
            continue
        if address:
            reader.problems.warn(
                node.mark, path, f"the address {address} is left out: every host publishes the port"
            )
        found += ports
    unique = list(dict.fromkeys(found))
    return sorted(unique, key=lambda port: port.published_port)


def _long_port(reader: Reader) -> list[PortConfig]:
    target = reader.integer("target", least=1)
    published = reader.node("published")
    protocol = reader.choice("protocol", ("tcp", "udp", "sctp"), "tcp")
    mode = reader.choice("mode", ("ingress", "host"), "ingress")
    name = reader.text("name")
    if reader.node("app_protocol") is not None:
        reader.warn("app_protocol", "left out: it is a note for people")
    if reader.node("host_ip") is not None:
        reader.warn("host_ip", "left out: every host publishes the port on its address")
    reader.done()
    if target is None:
        if "target" not in reader:
            reader.problems.error(reader.mark, reader.at("target"), "name the container's port")
        return []
    if published is None:
        return [PortConfig(name=name, protocol=protocol, target_port=target, publish_mode=mode)]
    try:
        ports, _ = parse_port(f"{go_text(published.value)}:{target}/{protocol}")  # type: ignore[arg-type]
    except BadValue as error:
        reader.error("published", str(error))
        return []
    return [msgspec.structs.replace(port, name=name, publish_mode=mode) for port in ports]


def _members(reader: Reader, key: str) -> Iterator[tuple[str, Reader]]:
    """The members of a mapping, or of a list of names; keys of one that were not asked for are told."""
    node = reader.node(key)
    if node is None:
        return
    section = Reader(as_mapping(node), reader.at(key), reader.problems)
    for name, child in section.root.mapping.items():
        one = Reader(child, section.at(name), reader.problems)
        yield name, one
        one.done()


def _networks(reader: Reader) -> dict[str, NetworkUse]:
    found = {}
    for name, one in _members(reader, "networks"):
        found[name] = NetworkUse(one.texts("aliases"), one.labels("driver_opts"))
        for key in ("ipv4_address", "ipv6_address", "link_local_ips", "mac_address", "interface_name"):
            if one.node(key) is not None:
                one.error(key, "the swarm gives every task its address; reach services by name")
        for key in ("priority", "gw_priority"):
            if one.node(key) is not None:
                one.warn(key, "left out: which network the default route takes is the swarm's choice")
    return found


def _file_uses(reader: Reader, key: str) -> Iterator[FileUse]:
    for path, node in reader.items(key):
        if isinstance(node.value, str):
            yield FileUse(node.value, node.value)
            continue
        one = Reader(node, path, reader.problems)
        source = one.text("source")
        mode = one.integer("mode")
        uid, gid = _id(one, "uid"), _id(one, "gid")
        yield FileUse(source, one.text("target") or source, uid, gid, 0o444 if mode is None else mode)
        if not source:
            one.problems.error(one.mark, one.path, f"source names one of the {key}")
        one.done()


def _id(reader: Reader, key: str) -> str:
    node = reader.node(key)
    if node is not None and isinstance(node.value, int) and not isinstance(node.value, bool):
        return str(node.value)
    return reader.text(key) or "0"


def _depends_on(reader: Reader) -> dict[str, Dependency]:
    found = {}
    for name, one in _members(reader, "depends_on"):
        found[name] = Dependency(
            one.choice("condition", CONDITIONS, CONDITIONS[0]), one.boolean("required") is not False
        )
        if one.boolean("restart"):
            one.warn("restart", "left out: an update of one service restarts no other")
    return found
