"""Services at the socket level: where its programs may go, and whose a connection is that one of them gave a backend."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import msgspec
import pytest

from overlace.network.balancing import Balancing, Wish, find_cgroup2
from overlace.network.linux import sockets, unified
from overlace.network.linux.bpf_syscall import Map
from overlace.network.linux.loader import Loader, LoadError
from overlace.network.vfp.flows import UnifiedFlow
from overlace.network.vfp.model import Packet

HYBRID = """24 1 0:22 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 24 0:29 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        (HYBRID, "/sys/fs/cgroup/uni fied"),
        ("29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"),
        ("29 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""),  # not the whole of it
        ("25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", ""),
        ("", ""),
    ],
)
def test_where_cgroup_v2_is(mounts: str, found: str) -> None:
    assert find_cgroup2(mounts) == (Path(found) if found else None)


class FakeLoader:
    def __init__(self, attach: OSError | None = None, load: LoadError | None = None) -> None:
        self.did: list[str] = []
        self._attach, self._load = attach, load

    def open_sockets(self) -> None:
        if self._load:
            raise self._load
        self.did.append("open")

    def attach_sockets(self, cgroup: Path) -> None:
        if self._attach:
            raise self._attach
        self.did.append(f"attach {cgroup}")

    def detach_sockets(self) -> None:
        self.did.append("detach")


def level(loader: FakeLoader, wish: Wish) -> Balancing:
    real = cast(Loader, loader)
    return sockets.attach(real, wish, sockets.load(real, wish))


def test_the_level_and_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sockets, "find_cgroup2", lambda mounts: tmp_path)
    for wish in ("auto", "socket"):
        good = FakeLoader()
        assert level(good, cast(Wish, wish)) == Balancing("socket", str(tmp_path))
        assert good.did == ["open", f"attach {tmp_path}"]
    told = FakeLoader()
    assert level(told, "packet").level == "packet" and told.did == ["detach"]
    for bad, why in (
        (FakeLoader(load=LoadError("the kernel refused socket.o")), "the kernel refused socket.o"),
        (
            FakeLoader(attach=OSError(1, "Operation not permitted")),
            "takes no programs: Operation not permitted",
        ),
    ):
        found = level(bad, "auto")
        assert found.level == "packet" and why in found.why and why in found.words
        with pytest.raises(LoadError, match=f"cannot be balanced at the socket level: .*{why}"):
            level(bad, "socket")
    monkeypatch.setattr(sockets, "find_cgroup2", lambda mounts: None)
    assert level(FakeLoader(), "auto").why == "no cgroup v2 is mounted"


class Rows:
    """A map to read."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self._rows = rows
        self.key_size = len(next(iter(rows)))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        yield from self._rows.items()


def connection(src: str, dst: str, front: str, kind: int, vni: int = 4097) -> tuple[bytes, bytes]:
    """A row of `flows`: struct flow_key and struct flow of bpf/types.h, ports 40000 to 80, asked for 8080."""
    src_octets, dst_octets, front_octets = (ip_address(a).packed for a in (src, dst, front))
    key = struct.pack("I", vni) + src_octets + dst_octets + struct.pack(">HHBBxx", 40000, 80, 6, 0)
    value = src_octets + front_octets + struct.pack(">HH", 40000, 8080)
    return key, value + struct.pack("IIIII", vni, vni, 0, 0, 5) + struct.pack("QBBB5x", 9, kind, 0, 0)


@pytest.mark.parametrize(
    ("src", "dst", "front", "name"),
    [
        ("10.0.1.5", "10.0.1.6", "10.0.1.2", "10.0.1.2:8080"),
        ("fd00::5", "fd00::6", "fd00::2", "[fd00::2]:8080"),
    ],
)
def test_whose_a_connection_is(src: str, dst: str, front: str, name: str) -> None:
    table = Rows(dict([connection(src, dst, front, 4), connection(src, front, dst, 1)]))
    known = unified.services(cast(Map, table))
    assert list(known.values()) == [name], "only what the socket level chose"

    def vni_of(endpoint_id: str) -> int:
        return {"MINE": 4097, "THEIRS": 4098}.get(endpoint_id, 0)

    def flow(came: Packet, point: str, to: str = "") -> UnifiedFlow:
        return UnifiedFlow(
            point=point, ifindex=7, came=came, went=came, verdict="deliver", vni=0, from_provider="",
            provider_address="", to_ifindex=8, mac="", packets=1, bytes=1, idle=0, generation=1, current=True,
            to_endpoint=to,
        )  # fmt: skip

    out, back = Packet(src, dst, 6, 40000, 80), Packet(dst, src, 6, 80, 40000)
    assert unified.service_of(flow(out, "MINE"), known, vni_of) == name
    assert unified.service_of(flow(back, "tunnel", "MINE"), known, vni_of) == name
    assert unified.service_of(flow(out, "THEIRS"), known, vni_of) == "", (
        "the same addresses on another network"
    )
    other = msgspec.structs.replace(out, sport=40001)
    assert unified.service_of(flow(other, "MINE"), known, vni_of) == ""
