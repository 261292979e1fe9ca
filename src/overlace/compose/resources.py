"""The top-level networks, volumes, secrets and configs of a compose file.

Owns their keys, and `external` in its old and new spelling. Must not know services.
"""

from __future__ import annotations

import ipaddress

from overlace.compose.project import FileDef, NetworkDef, VolumeDef
from overlace.compose.reader import Reader
from overlace.model.specs import IpamConfig


def read_network(key: str, reader: Reader) -> NetworkDef:
    external, name = _external(reader)
    driver = reader.text("driver")
    driver_opts, labels = reader.labels("driver_opts"), reader.labels("labels")
    internal, attachable = reader.boolean("internal") or False, reader.boolean("attachable") or False
    ipv6 = reader.boolean("enable_ipv6") or False
    if reader.boolean("enable_ipv4") is False:
        reader.error("enable_ipv4", "an overlay always has IPv4; leave it out")
    ipam_driver, ipam = _ipam(reader.sub("ipam"))
    reader.done()
    if external:
        _only_name(reader, ("driver", "driver_opts", "labels", "internal", "attachable", "ipam"))
        return NetworkDef(name=name or key, external=True)
    return NetworkDef(
        name=name, driver=driver, driver_opts=driver_opts, labels=labels, internal=internal, attachable=attachable,
        enable_ipv6=ipv6, ipam_driver=ipam_driver, ipam=ipam,
    )  # fmt: skip


def _ipam(reader: Reader | None) -> tuple[str, list[IpamConfig]]:
    if reader is None:
        return "", []
    found = []
    for path, node in reader.items("config"):
        one = Reader(node, path, reader.problems)
        config = IpamConfig(
            one.text("subnet"), one.text("ip_range"), one.text("gateway"), one.labels("aux_addresses")
        )
        for key, value in (("subnet", config.subnet), ("ip_range", config.range)):
            if value and not _is_network(value):
                one.error(key, f'"{value}" is not a network; write it like 10.20.0.0/24')
        one.done()
        found.append(config)
    driver = reader.text("driver")
    if reader.node("options") is not None:
        reader.error("options", "the swarm's address pools take no options; leave it out")
    reader.done()
    return driver, found


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def read_volume(key: str, reader: Reader) -> VolumeDef:
    external, name = _external(reader)
    found = VolumeDef(
        name=name or (key if external else ""), external=external, driver=reader.text("driver"),
        driver_opts=reader.labels("driver_opts"), labels=reader.labels("labels"),
    )  # fmt: skip
    if reader.node("x-cluster-spec") is not None:
        reader.error("x-cluster-spec", "there are no cluster volumes; use a volume of the driver local")
    reader.done()
    if external:
        _only_name(reader, ("driver", "driver_opts", "labels"))
    return found


def read_file(kind: str, key: str, reader: Reader) -> FileDef:
    """A secret or config; `kind` is which."""
    external, name = _external(reader)
    content = reader.text("content") if kind == "config" and reader.node("content") is not None else None
    found = FileDef(
        mark=reader.mark, name=name or (key if external else ""), external=external, file=reader.text("file"),
        environment=reader.text("environment"), content=content, labels=reader.labels("labels"),
        template_driver=reader.text("template_driver"),
        driver=reader.text("driver") if kind == "secret" else "",
        driver_opts=reader.labels("driver_opts") if kind == "secret" else {},
    )  # fmt: skip
    reader.done()
    sources = [k for k in ("file", "environment", "content", "driver") if reader.node(k) is not None]
    if external:
        _only_name(
            reader, ("file", "environment", "content", "driver", "driver_opts", "template_driver", "labels")
        )
    elif len(sources) != 1:
        ways = "file, environment or content" if kind == "config" else "file, environment or driver"
        said = f"{' and '.join(sources)} are given" if sources else "nothing says where its data is"
        reader.problems.error(reader.mark, reader.path, f"{said}; give one of {ways}, or external: true")
    return found


def _external(reader: Reader) -> tuple[bool, str]:
    """Whether it is made outside of the stack, and the name it has there; `external: {name: X}` is the old way."""
    name = reader.text("name")
    node = reader.node("external")
    if node is None:
        return False, name
    if not isinstance(node.value, dict):
        return reader.boolean("external") or False, name
    old = reader.sub("external")
    assert old is not None
    inner = old.text("name")
    old.done()
    if inner and name:
        old.error("name", "given beside name; keep name only")
    return True, name or inner


def _only_name(reader: Reader, keys: tuple[str, ...]) -> None:
    for key in keys:
        if reader.node(key) is not None:
            reader.error(key, "an external one is used as it is; leave this out, or external")
