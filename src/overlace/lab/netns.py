"""The lab's wires: namespaces, a bridge in a namespace of its own, veths, addresses, routes, host names.

Owns `ip` and `unshare` calls. Every ensure_* and remove_* may be repeated. Must not start processes that
stay.

The bridge lives in the switch namespace so that a lab leaves one veth in this machine's own namespace and
nothing else, and so that what crosses the underlay can be captured in one place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from overlace.lab.layout import OUTSIDE_ADDRESS, Host, LabPlan
from overlace.lab.shell import run

NETNS_DIR = "/var/run/netns"
BRIDGE = "br0"


def enter(netns: str, uts: str | None = None) -> list[str]:
    """The words before a command that run it in a namespace. Not `ip netns exec`: it hides bpffs and
    cgroups.
    """
    return ["nsenter", f"--net={NETNS_DIR}/{netns}", *([f"--uts={uts}"] if uts else []), "--"]


def exists(netns: str) -> bool:
    return os.path.exists(f"{NETNS_DIR}/{netns}")


def names() -> set[str]:
    """All named network namespaces of this machine."""
    try:
        return set(os.listdir(NETNS_DIR))
    except FileNotFoundError:
        return set()


def inode(path: str) -> int | None:
    """The namespace's inode number, which identifies it; None when `path` is gone."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _batch(netns: str, lines: Sequence[str]) -> None:
    run([*enter(netns), "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def ensure_switch(plan: LabPlan) -> None:
    """The underlay: a bridge, the gateway address on it, the outside address behind it, and our shell's
    link to it.
    """
    if not exists(plan.switch):
        run(["ip", "netns", "add", plan.switch])
    have = run([*enter(plan.switch), "ip", "-o", "link", "show"])
    if f" {BRIDGE}:" in have:
        return
    _batch(
        plan.switch,
        [
            "link set lo up",
            f"link add {BRIDGE} mtu {plan.mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {BRIDGE} up",
            f"addr add {plan.gateway}/24 dev {BRIDGE}",
            f"addr add {OUTSIDE_ADDRESS}/32 dev lo",
        ],
    )
    # A router, so that what has no way out is answered "unreachable" at once and not after a time-out.
    run([*enter(plan.switch), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
    # Where br_netfilter is built in, bridged frames would walk iptables: a switch does not.
    for knob in ("iptables", "ip6tables", "arptables"):
        path = f"/proc/sys/net/bridge/bridge-nf-call-{knob}"
        run([*enter(plan.switch), "sh", "-c", f"test ! -e {path} || echo 0 > {path}"])
    run(["ip", "link", "del", plan.shell_link], check=False)
    run(["ip", "link", "add", plan.shell_link, "type", "veth", "peer", "name", "shell", "netns", plan.switch])
    _batch(plan.switch, [f"link set shell mtu {plan.mtu} master {BRIDGE} up"])
    run(["ip", "link", "set", plan.shell_link, "mtu", str(plan.mtu), "up"])
    run(["ip", "addr", "add", f"{plan.shell_address}/24", "dev", plan.shell_link])


def card_address(address: str) -> str:
    """The MAC of a station's network card: the same whenever it is switched on, as a machine's is, or its neighbours
    would go on sending to the card it had before.
    """
    return "02:1b:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def ensure_station(plan: LabPlan, netns: str, address: str, port: str, six: str = "") -> None:
    """One namespace with eth0 on the underlay; `port` is the veth's name on the switch, `six` its IPv6 address."""
    if exists(netns):
        return
    run(["ip", "netns", "add", netns])
    run([*enter(plan.switch), "ip", "link", "del", port], check=False)
    run(
        [
            "ip",
            "link",
            "add",
            "eth0",
            "address",
            card_address(address),
            "netns",
            netns,
            "type",
            "veth",
            "peer",
            "name",
            port,
            "netns",
            plan.switch,
        ]
    )
    _batch(plan.switch, [f"link set {port} mtu {plan.mtu} master {BRIDGE} up"])
    _batch(
        netns,
        [
            "link set lo up",
            f"link set eth0 mtu {plan.mtu} up",
            f"addr add {address}/24 dev eth0",
            f"route add default via {plan.gateway}",
            *([f"addr add {six}/64 dev eth0 nodad"] if six else []),
        ],
    )


def ensure_host(plan: LabPlan, host: Host) -> None:
    """The host's namespace, link and host name."""
    ensure_station(plan, host.netns, host.address, host.name, host.six)
    if not os.path.ismount(host.uts):
        Path(host.uts).parent.mkdir(parents=True, exist_ok=True)
        Path(host.uts).touch()
        run(["unshare", f"--uts={host.uts}", "hostname", host.name])


def remove_host(host: Host) -> None:
    """Take the host's namespaces away; its veth goes with them. Processes inside must be gone."""
    run(["umount", "--lazy", host.uts], check=False)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(host.uts)
    remove(host.netns)


def remove(netns: str) -> None:
    if exists(netns):
        run(["ip", "netns", "del", netns])


def remove_shell_link(plan: LabPlan) -> None:
    """Our shell's veth usually goes with the switch; by name in case the switch never came to be."""
    run(["ip", "link", "del", plan.shell_link], check=False)


def taken_numbers() -> set[int]:
    """Lab numbers whose shell link exists, whoever made it."""
    found = set()
    for link in os.listdir("/sys/class/net"):
        if link.startswith("ovl-") and link[4:].isdigit():
            found.add(int(link[4:]))
    return found
