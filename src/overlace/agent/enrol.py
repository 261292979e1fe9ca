"""How a host becomes a member of a swarm, and stays one: joining with a token, renewing its certificate.

Owns the order of checks that keeps a joining host from trusting the wrong swarm: token form, the CA against
the token's digest, then the manager against that CA; only then does the token's secret leave this host. Must
not know sessions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from overlace.model.errors import (
    FailedPrecondition,
    InvalidArgument,
    OverlaceError,
    PermissionDenied,
    Unavailable,
)
from overlace.model.objects import NodeDescription
from overlace.security.ca import load_certificate, new_csr, new_key_pem, ns_text, to_ns
from overlace.security.identity import Identity, save_identity
from overlace.security.tls import client_context, unverified_context
from overlace.security.tokens import InvalidToken, JoinToken, ca_digest, parse_token
from overlace.wire.messages import Manager
from overlace.wire.transport import JoinRequest, RenewRequest, join_address, parse_address
from overlace.wire.transport_client import download_ca, renew_certificate, request_certificate


async def join_swarm(
    data_root: Path,
    addresses: Sequence[str],
    token: str,
    *,
    description: NodeDescription | None = None,
    availability: str = "active",
    advertise: str = "",
    clock: Callable[[], int] = time.time_ns,
) -> tuple[Identity, Manager]:
    """Become a member through the first of `addresses` that answers; the identity is on disk when this
    returns.

    Raises InvalidToken (`invalid join token`), FailedPrecondition (the CA there is not the token's, or has
    expired), InvalidArgument (an address), Unavailable (no contact: names each address and why).
    """
    parsed = parse_token(token)
    if not addresses:
        raise InvalidArgument("at least 1 RemoteAddr is required to join")
    names = [join_address(*parse_address(a)) for a in addresses]
    reasons: list[str] = []
    for address in names:
        try:
            return await _join_at(data_root, address, parsed, description, availability, advertise, clock)
        except Unavailable as e:
            reasons.append(e.message)
    raise Unavailable("; ".join(reasons))


async def _join_at(
    data_root: Path,
    address: str,
    token: JoinToken,
    description: NodeDescription | None,
    availability: str,
    advertise: str,
    clock: Callable[[], int],
) -> tuple[Identity, Manager]:
    ca_pem = check_ca(await download_ca(address, unverified_context()), token, clock())
    key = new_key_pem()
    request = JoinRequest(new_csr(key), str(token), description, availability, advertise)
    try:
        answer = await request_certificate(address, request, client_context(ca_pem))
    except PermissionDenied as e:
        if e.message == InvalidToken().message:
            raise InvalidToken from None
        raise
    if answer.ca.strip() != ca_pem.strip():
        raise FailedPrecondition(f"the manager at {address} answered with another CA than it showed before")
    # the disk is waited for whole: a join given up in between must not go on writing behind its undoing
    saving = asyncio.ensure_future(
        asyncio.to_thread(save_identity, data_root, ca_pem, key, answer.certificate)
    )
    try:
        identity = await asyncio.shield(saving)
    except asyncio.CancelledError:
        await asyncio.wait({saving})
        raise
    return identity, Manager(answer.manager_id, address)


def check_ca(ca_pem: str, token: JoinToken, now: int) -> str:
    """The downloaded root, when it is the token's and in date. Raises FailedPrecondition."""
    try:
        actual = ca_digest(ca_pem)
        certificate = load_certificate(ca_pem)
    except InvalidArgument as e:
        raise FailedPrecondition(f"remote CA is unreadable: {e.message}") from e
    if actual != token.ca_digest:
        raise FailedPrecondition(
            f"remote CA does not match fingerprint. Expected: {token.ca_digest}, got {actual}: "
            "the token is another swarm's, or somebody is in between"
        )
    end = to_ns(certificate.not_valid_after_utc)
    if now >= end:
        raise FailedPrecondition(
            f"the swarm's CA certificate expired on {ns_text(end)}: its CA must be rotated"
        )
    return ca_pem


async def renew_identity(data_root: Path, identity: Identity, address: str, advertise: str = "") -> Identity:
    """A fresh key and certificate for the same node, on disk when this returns. `advertise`: host:port it is, or
    would be, reached at as a manager.

    Raises PermissionDenied (removed from the swarm), Unavailable (no contact), InvalidArgument (an answer
    that does not fit this node).
    """
    key = new_key_pem()
    answer = await renew_certificate(
        address, RenewRequest(new_csr(key), advertise), client_context(identity.ca_pem, identity)
    )
    if answer.node_id != identity.node_id:
        raise InvalidArgument(
            f"the manager at {address} answered with a certificate of node {answer.node_id}"
        )
    try:
        return save_identity(data_root, identity.ca_pem, key, answer.certificate)
    except OverlaceError as e:
        e.add_note(f"renewing through {address}")
        raise
