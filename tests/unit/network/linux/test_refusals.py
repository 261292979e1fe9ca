"""When the host's own tools fail: nft that does not end, a dump that is interrupted, a link that does not let go."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from pathlib import Path

import pytest

from overlace.network.linux import bpf_syscall, nft
from overlace.network.linux.loader import Loader
from overlace.network.linux.netlink import Netlink
from overlace.network.linux.nft import NftError, PortPools, foreign_forward_drops, run_nft

INTERRUPTED = 0x10  # NLM_F_DUMP_INTR, linux/netlink.h


def test_nft_that_does_not_end_is_an_error_of_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(argv: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(argv, 30)

    monkeypatch.setattr(subprocess, "run", forever)
    with pytest.raises(NftError, match="did not end within 30 seconds"):
        run_nft("flush ruleset")
    assert foreign_forward_drops() == []


def test_an_interface_without_a_limit_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts: list[str] = []
    monkeypatch.setattr(nft, "run_nft", scripts.append)
    pools = PortPools("x")
    for n in range(3):
        pools.ensure(f"ov{n}", 100)
        pools.ensure(f"ov{n}", 0)
    assert not pools._most
    assert len(scripts) == 6
    pools.ensure("ov0", 0)
    assert len(scripts) == 6


class Answers:
    """A route socket whose dumps are interrupted so many times; an interrupted one lacks the second interface."""

    def __init__(self, interrupted: int) -> None:
        self.left = interrupted
        self.asked = 0

    def send(self, data: bytes) -> None:
        self.asked += 1
        (self.sequence,) = struct.unpack_from("I", data, 8)

    def recv(self, _: int) -> bytes:
        flags = INTERRUPTED if self.left else 0
        names = ["a"] if self.left else ["a", "b"]
        self.left = max(self.left - 1, 0)
        out = b""
        for i, name in enumerate(names):
            body = (
                struct.pack("BxHiII", 0, 0, i + 1, 0, 0) + struct.pack("HH", 6, 3) + name.encode() + b"\0\0\0"
            )
            out += struct.pack("IHHII", len(body) + 16, 16, 2 | flags, self.sequence, 0) + body
        return out + struct.pack("IHHIIi", 20, 3, 2 | flags, self.sequence, 0, 0)

    def close(self) -> None: ...


@pytest.mark.parametrize("times", [0, 1, 5])
def test_what_changed_while_it_was_read_is_read_again(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    with Netlink() as netlink:
        netlink._socket.close()
        answers = Answers(times)
        monkeypatch.setattr(netlink, "_socket", answers)
        assert [link.name for link in netlink.links()] == ["a", "b"]
        assert answers.asked == times + 1


def test_what_never_stays_the_same_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Netlink() as netlink:
        netlink._socket.close()
        monkeypatch.setattr(netlink, "_socket", Answers(1 << 20))
        with pytest.raises(OSError, match="changed meanwhile"):
            netlink.links()


@pytest.mark.parametrize(
    ("code", "stays"),
    [(errno.ENOLINK, False), (errno.ENODEV, False), (errno.EPERM, True)],
    ids=errno.errorcode.get,
)
def test_the_pin_of_a_link_that_does_not_let_go_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, stays: bool
) -> None:
    """Without it nobody could take the program off its device again."""

    def refuses(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(bpf_syscall, "get_pinned", lambda path: os.open(path, os.O_RDONLY))
    monkeypatch.setattr(bpf_syscall, "detach_link", refuses)
    loader = Loader("x")
    monkeypatch.setattr(loader, "root", tmp_path)
    loader.links.mkdir()
    (loader.links / "ov1").touch()
    if stays:
        with pytest.raises(OSError, match="not permitted"):
            loader.detach("ov1")
    else:
        loader.detach("ov1")
    assert (loader.links / "ov1").exists() == stays
