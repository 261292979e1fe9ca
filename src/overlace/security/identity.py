"""A node's identity on disk: its key, its certificate and the swarm's root, under
<data-root>/swarm/certificates.

Owns the files (0600, on Windows what the data root's access list says; written whole or not at all) and the date to
renew at. Key and certificate share one file, so that a crash never leaves a pair that does not match. Must not know
managers or sockets; the key is never logged or shown.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from pathlib import Path

from overlace.model.errors import InvalidArgument, Unavailable
from overlace.model.system import ON_WINDOWS
from overlace.security.ca import (
    CertificateAuthority,
    is_issued_by,
    new_csr,
    new_key_pem,
    ns_text,
    read_certificate,
)

_PAIR = "node.pem"
_ROOT = "ca.pem"


class Identity:
    """Who this node is. `pair_path` holds key and certificate for ssl.SSLContext.load_cert_chain."""

    def __init__(self, pair_path: Path, ca_pem: str, certificate_pem: str) -> None:
        self.facts = read_certificate(certificate_pem)
        self.pair_path = pair_path
        self.ca_pem = ca_pem
        self.certificate_pem = certificate_pem

    @property
    def ca_path(self) -> Path:
        return self.pair_path.with_name(_ROOT)

    @property
    def node_id(self) -> str:
        return self.facts.node_id

    @property
    def role(self) -> str:
        return self.facts.role

    @property
    def cluster_id(self) -> str:
        return self.facts.cluster_id

    def __repr__(self) -> str:
        return f"Identity({self.node_id}, {self.role}, until {ns_text(self.facts.not_after)})"


def identity_dir(data_root: Path) -> Path:
    return data_root / "swarm" / "certificates"


def load_identity(data_root: Path) -> Identity | None:
    """The identity kept here; None when the node is in no swarm.

    Raises InvalidArgument when the files do not fit together: the node must leave (--force) and join again.
    """
    folder = identity_dir(data_root)
    try:
        pair = (folder / _PAIR).read_text()
        ca_pem = (folder / _ROOT).read_text()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise Unavailable(f"cannot read this node's identity: {e}") from e
    start = pair.find("-----BEGIN CERTIFICATE-----")
    try:
        if start < 0 or not is_issued_by(pair[start:], ca_pem):
            raise InvalidArgument("its certificate is not the swarm's")
        return Identity(folder / _PAIR, ca_pem, pair[start:])
    except InvalidArgument as e:
        raise InvalidArgument(
            f"this node's identity in {folder} is damaged: {e.message}; "
            "leave the swarm (--force) and join again"
        ) from e


def save_identity(data_root: Path, ca_pem: str, key_pem: str, certificate_pem: str) -> Identity:
    """Replace what is kept here. Raises InvalidArgument when the certificate is not this CA's, Unavailable
    when the disk refuses; the old identity is whole then."""
    if not is_issued_by(certificate_pem, ca_pem):
        raise InvalidArgument("the certificate received is not signed by the swarm's CA")
    folder = identity_dir(data_root)
    identity = Identity(folder / _PAIR, ca_pem, certificate_pem)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        if not _same(folder / _ROOT, ca_pem):
            # another swarm's root: the old pair must not be seen beside it
            (folder / _PAIR).unlink(missing_ok=True)
            _write(folder / _ROOT, ca_pem)
        _write(folder / _PAIR, key_pem.strip() + "\n" + certificate_pem.strip() + "\n")
    except OSError as e:
        raise Unavailable(f"cannot write this node's identity: {e}") from e
    return identity


def found_identity(
    data_root: Path,
    ca: CertificateAuthority,
    *,
    node_id: str,
    cluster_id: str,
    now: int,
    life_ns: int,
    address: str = "",
) -> Identity:
    """The first manager's identity: it holds the CA's key, so it signs for itself (`swarm init`)."""
    key = new_key_pem()
    issued = ca.issue(
        new_csr(key),
        node_id=node_id,
        role="manager",
        cluster_id=cluster_id,
        now=now,
        life_ns=life_ns,
        address=address,
    )
    return save_identity(data_root, ca.cert_pem, key, issued.pem)


def renew_at(not_before: int, not_after: int, rng: random.Random) -> int:
    """When to renew: a random moment between 50 and 80 % of the certificate's life (swarmkit ca/renewer.go),
    so that nodes which joined together do not renew together. Times in ns since the epoch."""
    return not_before + int((not_after - not_before) * rng.uniform(0.5, 0.8))


def _same(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except FileNotFoundError:
        return False


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if ON_WINDOWS:
        return  # a folder cannot be opened there; NTFS keeps a rename in its journal
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
