"""What people write as log options, and what it comes to."""

from __future__ import annotations

import pytest

from overlace.model.errors import InvalidArgument, Unimplemented
from overlace.model.logoptions import parse_log_options, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10m", 10_000_000),
        ("1g", 10**9),
        ("200k", 200_000),
        ("1.5MB", 1_500_000),
        ("4096", 4096),
        ("2 GiB", 2 * 10**9),
    ],
)
def test_sizes_are_decimal_as_dockers(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "10x", "1e3", "10mm"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


def test_options_and_their_defaults() -> None:
    assert parse_log_options({}) == (0, 0)
    assert parse_log_options({"max-size": "10m", "max-file": "3"}) == (10_000_000, 3)
    assert parse_log_options({"max-size": "10m"}) == (10_000_000, 1), "as Docker: one file"
    assert parse_log_options({"max-file": "5"}) == (0, 5)
    assert parse_log_options({"mode": "blocking", "compress": "false"}) == (0, 0), "what is so anyway"


@pytest.mark.parametrize(
    "option", ["compress", "env", "env-regex", "labels", "labels-regex", "max-buffer-size", "mode", "tag"]
)
def test_what_hosts_do_not_honour_is_named(option: str) -> None:
    with pytest.raises(Unimplemented, match=f"log option {option} is not supported yet"):
        parse_log_options({option: "true"})
