"""Addresses people write, and errors that cross the wire as themselves."""

from __future__ import annotations

import pytest

from overlace.model.errors import InvalidArgument, NoLeader, OverlaceError, PermissionDenied
from overlace.wire.transport import Failure, JoinRequest, error_of, join_address, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", 2377),
        ("10.0.0.1:99", "10.0.0.1", 99),
        ("[fe80::1]:99", "fe80::1", 99),
        ("fe80::1", "fe80::1", 2377),
        ("[fe80::1]", "fe80::1", 2377),
        (" m1:2377 ", "m1", 2377),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert parse_address(join_address(host, port)) == (host, port)


@pytest.mark.parametrize("text", ["", ":2377", "a:b", "a:0", "a:65536", "a:-1"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(InvalidArgument, match="use HOST:PORT"):
        parse_address(text)


def test_errors_arrive_as_what_they_were() -> None:
    found = error_of(Failure("no", "PermissionDenied"))
    assert isinstance(found, PermissionDenied) and found.message == "no"
    lost = error_of(Failure(NoLeader().message, "Unknown"))
    assert isinstance(lost, NoLeader) and lost.swarm, "shown in Docker's words by whoever passes it on"
    assert type(error_of(Failure("x", "Unheard"))) is OverlaceError


def test_a_join_request_does_not_show_its_token() -> None:
    assert "SWMTKN" not in repr(JoinRequest("csr", "SWMTKN-1-a-b"))
