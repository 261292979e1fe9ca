"""What the Linux data path does with packets it must not believe, and with packets too big for the path."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from datapath_bed import (
    Container,
    Host,
    ask,
    ask_udp,
    connect,
    echo,
    line,
    mac_of,
    made_bed,
    network,
    ping,
    run,
)

from overlace.network.linux.netns import run_inside
from overlace.network.vfp.tables import HOST4, Backend, Frontend

pytestmark = [pytest.mark.host, pytest.mark.timeout(60)]
NET = network(4097, "10.0.1.0/24")
INGRESS = network(4096, "10.0.0.0/24", ingress=True)
LOCAL = network(901, "172.30.0.0/24", local=True)
MTU_DISCOVER, DO, DONT, BLIND = 10, 2, 0, 4  # IP_MTU_DISCOVER, IP_PMTUDISC_DO, _DONT, _INTERFACE


@pytest.fixture(scope="module")
def world() -> Iterator[SimpleNamespace]:
    with made_bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        for host in bed.hosts:
            host.put(NET, INGRESS, LOCAL)
        one, two = Container(a, "one"), Container(b, "two")
        one.join(NET, "10.0.1.5", outbound=True, mtu=1500)  # more than the tunnel carries
        two.join(NET, "10.0.1.6", mtu=1500)
        two.join(INGRESS, "10.0.0.6", default=False, mtu=1500)
        two.join(LOCAL, "172.30.0.6", default=False)
        bed.serve(two.path, 80, "two")
        bed.serve(two.path, 53, "two", socket.SOCK_DGRAM)
        for host in bed.hosts:
            host.put(Frontend(0, HOST4, 17, 53, (Backend(4096, "10.0.0.6"),)))
        yield SimpleNamespace(bed=bed, a=a, b=b, one=one, two=two)


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ip(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    )  # fmt: skip
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload


def _udp(source: str, destination: str, port: int, payload: bytes = b"hello") -> bytes:
    return _ip(source, destination, 17, struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload)


def _frame(destination_mac: str, source_mac: str, packet: bytes, kind: int = 0x0800) -> bytes:
    macs = bytes.fromhex((destination_mac + source_mac).replace(":", ""))
    return macs + struct.pack("!H", kind) + packet


def _send_raw(where: Path, device: str, frame: bytes) -> None:
    def body() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((device, 0))
            raw.send(frame)

    run_inside(where, body)


def _counted(host: Host, name: str, send: object, times: int = 1) -> None:
    """Run `send` and see the counter rise."""
    before = host.counters()[name]
    send()  # type: ignore[operator]
    for _ in range(50):
        if host.counters()[name] - before >= times:
            return
        time.sleep(0.02)
    raise AssertionError(f"{name} did not rise: {host.counters()}")


def _listen(where: Path, port: int) -> socket.socket:
    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", port))
        made.settimeout(0.5)
        return made

    return run_inside(where, body)


def _tunnel(world: SimpleNamespace, vxlan: bytes, source: str | None = None) -> None:
    """Send a UDP datagram to b's VXLAN port from host a's namespace (from its address unless another is
    said)."""

    def body() -> None:
        if source is None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
                plain.sendto(vxlan, (world.b.address, 4789))
        else:
            packet = _ip(
                source, world.b.address, 17, struct.pack("!HHHH", 4000, 4789, 8 + len(vxlan), 0) + vxlan
            )
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                raw.sendto(packet, (world.b.address, 0))

    run_inside(world.a.path, body)


def _vxlan(vni: int, inner: bytes, flags: int = 8) -> bytes:
    return struct.pack("!BxxxI", flags, vni << 8) + inner


def _inner(source: str = "10.0.1.5", destination: str = "10.0.1.6", port: int = 7000) -> bytes:
    return _frame(mac_of(destination), mac_of(source), _udp(source, destination, port))


def test_a_good_hand_made_packet_arrives(world: SimpleNamespace) -> None:
    """So that the drops below are drops for the reason they name."""
    with _listen(world.two.path, 7000) as listener:
        _tunnel(world, _vxlan(4097, _inner()))
        assert listener.recvfrom(100) == (b"hello", ("10.0.1.5", 4000))


@pytest.mark.parametrize(
    ("counter", "payload", "source"),
    [
        ("drop_unknown_vni", _vxlan(5555, _inner()), None),
        ("drop_unknown_vni", _vxlan(901, _inner("172.30.0.5", "172.30.0.6")), None),  # local network
        ("drop_wrong_provider", _vxlan(4097, _inner()), "172.28.77.99"),
        ("drop_wrong_provider", _vxlan(4097, _inner("10.0.1.77")), None),  # nobody known
        ("drop_wrong_provider", _vxlan(4097, _inner("10.0.1.6")), None),  # b's own
        ("drop_wrong_provider", _vxlan(4097, _inner("9.9.9.9")), None),  # outside, but not an ingress network
        (
            "drop_wrong_provider",
            _vxlan(4096, _inner("10.0.1.5", "10.0.0.6")),
            None,
        ),  # overlay address as a client
        ("drop_no_endpoint", _vxlan(4097, _inner(destination="10.0.1.99")), None),
        ("drop_no_endpoint", _vxlan(4097, _inner(destination="8.8.8.8")), None),
        ("drop_garbage", _vxlan(4097, _inner(), flags=0), None),
        ("drop_garbage", b"\x08\x00", None),
        ("drop_garbage", _vxlan(4097, _inner()[:20]), None),
        ("drop_garbage", _vxlan(4097, _inner()[:36]), None),
        ("drop_garbage", _vxlan(4097, _frame(mac_of("10.0.1.6"), mac_of("10.0.1.5"), b"\xff" * 60)), None),
        (
            "drop_unsupported",
            _vxlan(4097, _frame("ff:ff:ff:ff:ff:ff", mac_of("10.0.1.5"), bytes(46), 0x86DD)),
            None,
        ),
    ],
)
def test_tunnel_packets_that_are_not_believed(
    world: SimpleNamespace, counter: str, payload: bytes, source: str | None
) -> None:
    with _listen(world.two.path, 7000) as listener:
        _counted(world.b, counter, lambda: _tunnel(world, payload, source))
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.recv(100)


def _in_pieces(world: SimpleNamespace, vxlan: bytes) -> None:
    """The same as `_tunnel`, as two fragments of the outer packet."""
    datagram = struct.pack("!HHHH", 4000, 4789, 8 + len(vxlan), 0) + vxlan
    cut = 48  # behind the VXLAN header, within the inner packet

    def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for at, more in ((0, 0x2000), (cut, 0)):
                part = datagram[at : at + cut] if more else datagram[at:]
                packet = bytearray(_ip(world.a.address, world.b.address, 17, part))
                struct.pack_into("!HH", packet, 4, 777, more | at // 8)
                raw.sendto(bytes(packet), (world.b.address, 0))

    run_inside(world.a.path, body)


@pytest.mark.parametrize(
    ("counter", "payload"),
    [
        ("drop_unknown_vni", _vxlan(5555, _inner())),
        ("drop_wrong_provider", _vxlan(4097, _inner("10.0.1.77"))),
        ("drop_no_endpoint", _vxlan(4097, _inner(destination="10.0.1.99"))),
    ],
)
def test_fragments_of_the_tunnel_are_judged_whole(
    world: SimpleNamespace, counter: str, payload: bytes
) -> None:
    with _listen(world.two.path, 7000) as listener:
        _in_pieces(world, _vxlan(4097, _inner()))
        assert listener.recv(100) == b"hello", "a good one arrives"
        _counted(world.b, counter, lambda: _in_pieces(world, payload))
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.recv(100)


def test_noise_on_the_tunnel_port_harms_nobody(world: SimpleNamespace) -> None:
    import random

    dice = random.Random(1)
    for _ in range(300):
        head = _vxlan(4097, _inner())
        cut = dice.randrange(len(head))
        _tunnel(world, head[:cut] + dice.randbytes(dice.randrange(80)))
    assert ask(world.one.path, "10.0.1.6", 80)[0] == "two"


@pytest.mark.parametrize("what", ["address", "mac", "arp"])
def test_spoofed_packets_are_dropped(world: SimpleNamespace, what: str) -> None:
    mine, theirs = mac_of("10.0.1.5"), mac_of("10.0.1.6")
    frame = {
        "address": _frame(theirs, mine, _udp("10.0.1.66", "10.0.1.6", 7000)),
        "mac": _frame(theirs, mac_of("10.0.1.66"), _udp("10.0.1.5", "10.0.1.6", 7000)),
        "arp": _frame(
            "ff:ff:ff:ff:ff:ff", mine,
            struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes(6) + socket.inet_aton("10.0.1.5") + bytes(6)
            + socket.inet_aton("10.0.1.6"), 0x0806,
        ),
    }[what]  # fmt: skip
    with _listen(world.two.path, 7000) as listener:
        _counted(world.a, "drop_spoofed", lambda: _send_raw(world.one.path, "eth0", frame))
        with pytest.raises(TimeoutError):
            listener.recv(100)


def test_arp_for_an_unknown_address_is_not_answered(world: SimpleNamespace) -> None:
    _counted(world.a, "drop_arp", lambda: ping(world.one.path, "10.0.1.123", timeout=0.1))


def test_a_container_cannot_speak_vxlan_through_outbound_nat(world: SimpleNamespace) -> None:
    """Translated, its packet would come from a trusted VTEP."""

    def forge() -> None:
        def body() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
                plain.sendto(_vxlan(4097, _inner()), (world.b.address, 4789))

        run_inside(world.one.path, body)

    with _listen(world.two.path, 7000) as listener:
        _counted(world.a, "drop_isolation", forge)
        with pytest.raises(TimeoutError):
            listener.recv(100)


def _udp_socket(where: Path, discover: int) -> socket.socket:
    def body() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, discover)
        made.settimeout(2)
        return made

    return run_inside(where, body)


@pytest.mark.parametrize("from_outside", [False, True])
def test_too_big_with_df_is_answered(world: SimpleNamespace, from_outside: bool) -> None:
    where, address = (world.bed.client, world.a.address) if from_outside else (world.one.path, "10.0.1.6")
    with _udp_socket(where, DO) as question:
        question.connect((address, 53))
        question.send(b"x" * 1472)  # 1500 bytes of IP
        with pytest.raises(OSError, match="Message too long"):
            question.recv(100)
        assert question.getsockopt(socket.IPPROTO_IP, 14) == 1450  # IP_MTU: learnt from the answer
        question.send(b"x" * 1422)
        assert question.recv(100).split()[3] == b"1422"
    run("ip", "-n", world.bed.client.name, "route", "flush", "cache")


def test_too_big_without_df_takes_the_slow_path(world: SimpleNamespace) -> None:
    before = world.a.counters()["slow_path"]
    with _udp_socket(world.one.path, BLIND) as question:
        question.connect(("10.0.1.6", 53))
        question.send(b"x" * 1472)
        assert question.recv(100).split()[3] == b"1472"
    assert world.a.counters()["slow_path"] > before


def test_tcp_with_a_too_big_mtu_still_flows(world: SimpleNamespace) -> None:
    with connect(world.one.path, "10.0.1.6", 80) as connection:
        line(connection)
        assert echo(connection, bytes(range(256)) * 4096 * 8)


def test_a_smaller_path_to_a_client_is_learnt_by_the_container(world: SimpleNamespace) -> None:
    """The router's "fragmentation needed" names the published address; the backend must understand it."""
    inside = ("nsenter", f"--net={world.two.path}", "ip", "route")
    for host in world.bed.hosts:
        with _udp_socket(world.bed.client, DO) as question:
            question.connect((host.address, 53))
            question.send(b"x")
            _, client, port, _ = question.recv(100).decode().split()
            quoted = _ip(host.address, client, 17, struct.pack("!HHHH", 53, int(port), 1400, 0))
            error = struct.pack("!BBHHH", 3, 4, 0, 0, 1000) + quoted
            error = error[:2] + struct.pack("!H", _checksum(error)) + error[4:]
            assert "mtu 1000" not in run(*inside, "get", client)

            def send(packet: bytes = _ip(client, host.address, 1, error), to: str = host.address) -> None:
                with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                    raw.sendto(packet, (to, 0))

            run_inside(world.bed.client, send)
            time.sleep(0.1)
            assert "mtu 1000" in run(*inside, "get", client), host.name
        run(*inside, "flush", "cache")


def test_fragments_to_a_published_port(world: SimpleNamespace) -> None:
    for host in world.bed.hosts:
        with _udp_socket(world.bed.client, DONT) as question:
            question.connect((host.address, 53))
            question.send(b"x" * 5000)
            assert question.recv(100).split()[3] == b"5000"


def test_no_offload_on_the_underlay(world: SimpleNamespace) -> None:
    """Real checksums and real 1500-byte packets, as on hardware that does nothing for us."""
    for name in [world.a.ns, world.b.ns, world.bed.client.name]:
        for feature in ("tx", "tso", "gso", "gro"):
            run("ip", "netns", "exec", name, "ethtool", "-K", "eth0", feature, "off")
    try:
        with connect(world.one.path, "10.0.1.6", 80) as connection:
            line(connection)
            assert echo(connection, bytes(range(256)) * 4096)
        for host in world.bed.hosts:
            host.put(Frontend(0, HOST4, 6, 8080, (Backend(4096, "10.0.0.6", 80),)))
            with connect(world.bed.client, host.address, 8080) as connection:
                line(connection)
                assert echo(connection, bytes(range(256)) * 4096)
            assert ask_udp(world.bed.client, host.address, 53)[0] == "two"
        world.a.put(Frontend(0, HOST4, 6, 8089))
        with pytest.raises(ConnectionRefusedError):
            ask(world.bed.client, world.a.address, 8089)
    finally:
        for name in [world.a.ns, world.b.ns, world.bed.client.name]:
            for feature in ("tx", "gso", "tso", "gro"):
                run("ip", "netns", "exec", name, "ethtool", "-K", "eth0", feature, "on")
