"""resolv.conf(5): the host's, read; a container's, written.

Owns the file's text. Must not know who answers.
"""

from __future__ import annotations

from collections.abc import Sequence

ADDRESS = "127.0.0.11"  # of the containers' resolver


def parse_resolv_conf(text: str) -> tuple[list[str], list[str], list[str]]:
    """(nameservers, search domains, options) of a resolv.conf(5)."""
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = words[1:]
        elif words[0] == "options":
            options += words[1:]
    return servers, search, options


def host_resolv_conf(servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    """What a container on the host's own stack reads: the host's nameservers, not our resolver."""
    lines = [f"nameserver {server}" for server in servers]
    lines += [
        f"{word} {' '.join(values)}" for word, values in (("search", search), ("options", options)) if values
    ]
    return "".join(f"{line}\n" for line in lines)


def container_resolv_conf(search: Sequence[str], options: Sequence[str], resolver: str = ADDRESS) -> str:
    """What the container reads, as Docker writes it: our resolver, the host's search domains and options."""
    kept = list(options)
    if not any(o.startswith("ndots:") for o in kept):
        kept.append("ndots:0")
    lines = [f"nameserver {resolver}"]
    if search:
        lines.append("search " + " ".join(search))
    lines.append("options " + " ".join(kept))
    return "\n".join(lines) + "\n"
