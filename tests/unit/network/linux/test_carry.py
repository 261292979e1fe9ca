"""What an upgrade takes over of a row: its beginning, which all versions share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from overlace.network.linux.carry import explain_sizes, fit


@given(st.binary(max_size=64), st.integers(0, 64))
def test_a_row_of_another_version_keeps_what_both_know(value: bytes, size: int) -> None:
    now = fit(value, size)
    shared = min(len(value), size)
    assert len(now) == size and now[:shared] == value[:shared] and not any(now[shared:])


@given(st.binary(max_size=64), st.integers(0, 64))
def test_there_and_back_loses_nothing_of_the_shorter_one(value: bytes, more: int) -> None:
    assert fit(fit(value, len(value) + more), len(value)) == value


def test_what_cannot_be_kept_is_explained() -> None:
    assert explain_sizes((24, 24), (64, 64)) == ""
    assert explain_sizes((24, 28), (64, 64)) == "a key had 24 bytes and has 28 now"
    assert explain_sizes((4, 4), (24, 32)) == "a row had 24 bytes and has 32 now"
