"""What the kernel's route table says of another host, in words."""

from __future__ import annotations

import errno
import socket

import pytest

from overlace.network import route_there
from overlace.network.route_there import wrong_with_route


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENETUNREACH, "no route"), (errno.EINVAL, "a blackhole route"), (errno.ENOBUFS, "")],
)
def test_what_connect_says_is_put_into_words(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    class Refused(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(code, "x")

    monkeypatch.setattr(route_there.socket, "socket", Refused)
    assert wrong_with_route("192.0.2.1", 4789).startswith(words) and bool(words) == bool(
        wrong_with_route("192.0.2.1", 4789)
    )


def test_a_way_that_is_there_is_no_word() -> None:
    assert wrong_with_route("127.0.0.1", 4789) == ""
