"""The form of join tokens is Docker's, and nothing else passes for one."""

from __future__ import annotations

import re
import time

import pytest

from overlace.model.errors import InvalidArgument
from overlace.security.ca import CertificateAuthority
from overlace.security.tokens import InvalidToken, ca_digest, generate_token, parse_token, tokens_match


@pytest.fixture(scope="module")
def pem() -> str:
    return CertificateAuthority.create(time.time_ns()).cert_pem


def test_a_token_pins_the_ca_and_each_is_different(pem: str) -> None:
    one, two = generate_token(pem), generate_token(pem)
    assert re.fullmatch(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}", one)
    assert one != two
    assert parse_token(one).ca_digest == parse_token(two).ca_digest == ca_digest(pem)
    assert str(parse_token(f" {one}\n")) == one


@pytest.mark.parametrize(
    "text",
    ["", "x", "SWMTKN-1-", "SWMTKN-2-1-" + "a" * 50 + "-" + "b" * 25, "SWMTKN-1-" + "A" * 50 + "-" + "b" * 25,
     "SWMTKN-1-" + "a" * 50 + "-" + "b" * 24, "SWMTKN-1-" + "a" * 51 + "-" + "b" * 25],
)  # fmt: skip
def test_anything_else_is_an_invalid_join_token(text: str) -> None:
    with pytest.raises(InvalidToken, match=r"^invalid join token$") as refused:
        parse_token(text)
    assert refused.value.status == 500


def test_the_secret_does_not_show(pem: str) -> None:
    token = parse_token(generate_token(pem))
    assert token.secret not in repr(token)


def test_an_empty_token_matches_nothing() -> None:
    assert not tokens_match("", "")
    assert tokens_match("a ", "a") and not tokens_match("a", "b")
    assert not tokens_match("ä", "a")


def test_a_digest_needs_a_certificate() -> None:
    with pytest.raises(InvalidArgument, match="not valid PEM"):
        ca_digest("x")
