"""TLS contexts of the manager <-> agent port, and who the peer of a connection is.

Owns protocol versions and what is verified. A server asks for a client certificate and takes none for an
answer (a joining node has none yet); a certificate that is given must be the swarm's. A client asks its
server to be `swarm-manager`, a name only managers' certificates carry. Must not know HTTP.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import msgspec

from overlace.security.ca import MANAGER_NAME, role_of
from overlace.security.identity import Identity


class TlsPeer(msgspec.Struct, frozen=True):
    """A verified certificate's holder."""

    node_id: str
    role: str  # worker | manager
    cluster_id: str
    serial: str  # hex


def server_context(identity: Identity) -> ssl.SSLContext:
    """For the manager's port. A renewed certificate is found in its file and used from the next handshake
    on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    # a session ticket would carry a client's identity past its certificate's removal
    context.num_tickets = 0
    context.load_verify_locations(cadata=identity.ca_pem)
    loaded = _stamp(identity.pair_path)
    context.load_cert_chain(identity.pair_path)

    def follow(_socket: object, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal loaded
        stamp = _stamp(identity.pair_path)
        if stamp not in (loaded, None):
            try:
                context.load_cert_chain(identity.pair_path)
            except (OSError, ssl.SSLError):
                return  # written whole or not at all: the file is going away, the loaded pair still serves
            loaded = stamp

    context.sni_callback = follow
    return context


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def client_context(ca_pem: str, identity: Identity | None = None) -> ssl.SSLContext:
    """Verifies the manager against the swarm's root; connect with server_hostname=MANAGER_NAME."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem)
    if identity is not None:
        context.load_cert_chain(identity.pair_path)
    return context


def unverified_context() -> ssl.SSLContext:
    """To download the root certificate only, which the caller then checks against the token's digest."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_of(certificate: dict[str, Any] | None) -> TlsPeer | None:
    """The holder of a verified certificate (`ssl.SSLObject.getpeercert()`); None without one, or when it is
    no node's."""
    if not certificate:
        return None
    subject: dict[str, list[str]] = {}
    for part in certificate.get("subject", ()):
        for key, value in part:
            subject.setdefault(key, []).append(value)
    common, units, organizations = (
        subject.get(name, []) for name in ("commonName", "organizationalUnitName", "organizationName")
    )
    role = role_of(units[0]) if len(units) == 1 else None
    if role is None or len(common) != 1 or len(organizations) != 1:
        return None
    serial = str(certificate.get("serialNumber", "")).lower().lstrip("0")
    return TlsPeer(node_id=common[0], role=role, cluster_id=organizations[0], serial=serial)


__all__ = [
    "MANAGER_NAME",
    "TlsPeer",
    "client_context",
    "peer_of",
    "server_context",
    "unverified_context",
]
