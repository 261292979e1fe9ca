"""The keys that leave a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.api.detach import DetachKeys, parse_keys
from overlace.model.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "keys"), [("", b"\x10\x11"), ("ctrl-a,d", b"\x01d"), ("x", b"x"), ("ctrl-@,ctrl-[", b"\x00\x1b")]
)
def test_how_they_are_written(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "ctrl-p,,a"])
def test_what_they_are_not(text: str) -> None:
    with pytest.raises(InvalidArgument, match="Unknown character"):
        parse_keys(text)


def test_they_are_found_wherever_the_pieces_end() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"a\x10") == (b"a", False), "it waits for what comes next"
    assert keys.feed(b"b\x10") == (b"\x10b", False)
    assert keys.feed(b"\x10") == (b"\x10", False), "the first may be typed twice"
    assert keys.feed(b"\x11 rest") == (b"", True)


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_nothing_else_is_lost(pieces: list[bytes]) -> None:
    keys, passed = DetachKeys(b"\x10\x11"), b""
    typed = b"".join(pieces)
    for piece in pieces:
        out, left = keys.feed(piece)
        passed += out
        if left:
            assert passed == typed[: typed.index(b"\x10\x11")]
            return
    assert b"\x10\x11" not in typed
    assert typed in (passed, passed + b"\x10")
