"""Join tokens: `SWMTKN-1-<digest of the root CA>-<secret>`, as SwarmKit makes them (ca/config.go
GenerateJoinToken).

Owns the token's form. The digest (sha256 of the root certificate's DER, 50 base36 digits) lets a joining node
check the CA it downloads over an unverified connection; the secret (128 random bits, 25 base36 digits) proves
it may join. Must not know roles or the store. Tokens are secrets: never put one into a log or an error.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from overlace.model.errors import Internal, InvalidArgument
from overlace.model.ids import base36

_FORM = re.compile(r"SWMTKN-1-([0-9a-z]{50})-([0-9a-z]{25})")


class InvalidToken(Internal):
    """Docker's words and status (500) for any token that is not good (swarmkit ca/config.go
    errInvalidJoinToken)."""

    def __init__(self) -> None:
        super().__init__("invalid join token")


class JoinToken(msgspec.Struct, frozen=True):
    ca_digest: str  # 50 base36 digits
    secret: str  # 25 base36 digits

    def __str__(self) -> str:
        return f"SWMTKN-1-{self.ca_digest}-{self.secret}"

    def __repr__(self) -> str:
        return f"JoinToken(ca_digest={self.ca_digest!r}, secret=...)"


def ca_digest(ca_cert_pem: str) -> str:
    """The digest a token carries for this root certificate. Raises InvalidArgument for what is no
    certificate."""
    try:
        der = x509.load_pem_x509_certificate(ca_cert_pem.encode()).public_bytes(Encoding.DER)
    except ValueError as e:
        raise InvalidArgument(f"the CA certificate is not valid PEM: {e}") from e
    return base36(int.from_bytes(hashlib.sha256(der).digest(), "big"), 50)


def generate_token(ca_cert_pem: str) -> str:
    """A fresh token for the swarm of this root certificate."""
    return str(JoinToken(ca_digest(ca_cert_pem), base36(secrets.randbits(128), 25)))


def parse_token(text: str) -> JoinToken:
    """Raises InvalidToken for anything that is not exactly a token; surrounding space is forgiven (pasted
    text)."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InvalidToken
    return JoinToken(match[1], match[2])


def tokens_match(given: str, expected: str) -> bool:
    """Compare in constant time; an empty expected token matches nothing."""
    return bool(expected) and hmac.compare_digest(given.strip().encode(), expected.encode())
