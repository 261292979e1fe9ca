"""The swarm's certificate authority: its root, and the node certificates it issues.

Owns what the certificates say: CN = node id, OU = role, O = cluster id, as SwarmKit's (ca/certificates.go).
Full extensions (RFC 5280 4.2.1: basicConstraints, keyUsage, SKI, AKI), since Python 3.13 verifies strictly.
Must not know the store, the network or where keys are kept. Private keys never appear in a repr, a log or an
error.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from overlace.model.errors import InvalidArgument, Unavailable

ROOT_LIFE = timedelta(days=20 * 365)
NODE_LIFE_NS = 90 * 24 * 3600 * 1_000_000_000
BACKDATE = timedelta(hours=1)  # hosts whose clock is behind the manager's accept the certificate at once
ROOT_NAME = "swarm-ca"
MANAGER_NAME = "swarm-manager"  # a manager's certificate carries it: what a client asks its server to be
_OU = {"worker": "swarm-worker", "manager": MANAGER_NAME}
_ROLE = {ou: role for role, ou in _OU.items()}


class IssuedCertificate(msgspec.Struct, frozen=True):
    pem: str
    serial: str  # hex
    not_after: int  # ns since the epoch


class CertificateFacts(msgspec.Struct, frozen=True):
    """What a node certificate says. `role` is worker or manager."""

    node_id: str
    role: str
    cluster_id: str
    serial: str
    not_before: int  # ns since the epoch
    not_after: int


def role_of(organizational_unit: str) -> str | None:
    """`swarm-manager` -> `manager`; None for an OU that is not a role's."""
    return _ROLE.get(organizational_unit)


def new_key_pem() -> str:
    """A fresh ECDSA P-256 key, PKCS #8 PEM, not encrypted."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def new_csr(key_pem: str) -> str:
    """A request for a certificate for this key. It names nobody: who the node is, the CA decides."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(_private_key(key_pem), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def read_certificate(pem: str) -> CertificateFacts:
    """Raises InvalidArgument when it is no node certificate of a swarm."""
    certificate = load_certificate(pem)
    names = {
        oid: [str(a.value) for a in certificate.subject.get_attributes_for_oid(oid)]
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME)
    }
    common, units, organizations = names.values()
    role = role_of(units[0]) if len(units) == 1 else None
    if len(common) != 1 or len(organizations) != 1 or role is None:
        raise InvalidArgument(
            f"certificate {serial_text(certificate)} is no swarm node's: "
            f"subject {certificate.subject.rfc4514_string()}"
        )
    return CertificateFacts(
        node_id=common[0],
        role=role,
        cluster_id=organizations[0],
        serial=serial_text(certificate),
        not_before=to_ns(certificate.not_valid_before_utc),
        not_after=to_ns(certificate.not_valid_after_utc),
    )


def load_certificate(pem: str) -> x509.Certificate:
    """Raises InvalidArgument for what is no PEM certificate."""
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except ValueError as e:
        raise InvalidArgument(f"not a PEM certificate: {e}") from e


def serial_text(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:x}"


def is_issued_by(certificate_pem: str, ca_cert_pem: str) -> bool:
    """Whether the CA's key signed this certificate; its dates are not looked at."""
    try:
        load_certificate(certificate_pem).verify_directly_issued_by(load_certificate(ca_cert_pem))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def to_ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000


def ns_text(moment: int) -> str:
    """A date for people, UTC."""
    return datetime.fromtimestamp(moment // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class CertificateAuthority:
    """One root and its key. `cert_pem` is public; `key_pem` belongs into the cluster object only."""

    def __init__(self, cert_pem: str, key_pem: str) -> None:
        """Raises InvalidArgument when certificate and key are not a CA's pair."""
        self.cert_pem = cert_pem
        self.key_pem = key_pem
        self._certificate = load_certificate(cert_pem)
        self._key = _private_key(key_pem)
        if self._certificate.public_key() != self._key.public_key():
            raise InvalidArgument("the CA's private key does not belong to its certificate")

    def __repr__(self) -> str:
        return f"CertificateAuthority({serial_text(self._certificate)})"

    @classmethod
    def create(cls, now: int, life: timedelta = ROOT_LIFE) -> CertificateAuthority:
        """A new self-signed root, valid from an hour before `now` (ns since the epoch)."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ROOT_NAME)])
        ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        start = _moment(now)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - BACKDATE)
            .not_valid_after(start + life)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(ski, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False
            )
        )
        pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return cls(pem, key_pem)

    def issue(
        self,
        csr_pem: str,
        *,
        node_id: str,
        role: str,
        cluster_id: str,
        now: int,
        life_ns: int = NODE_LIFE_NS,
        address: str = "",
    ) -> IssuedCertificate:
        """Sign the request's key as this node's, from an hour before `now` for `life_ns`, never past the
        root's end. `address`: where a manager is reached, which its etcd peers verify.

        Raises InvalidArgument for a request that is none, is not signed by its own key, or whose key is too
        weak; Unavailable when the root itself has expired.
        """
        if role not in _OU:
            raise InvalidArgument(f"invalid role {role!r}: use worker or manager")
        public = _request_key(csr_pem)
        start = _moment(now)
        root_end = self._certificate.not_valid_after_utc
        if start >= root_end:
            raise Unavailable(
                f"the swarm's CA certificate expired on {ns_text(to_ns(root_end))}: rotate the CA"
            )
        names = [node_id, MANAGER_NAME, ROOT_NAME] if role == "manager" else [node_id, _OU[role]]
        root_ski = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, _OU[role]),
                        x509.NameAttribute(NameOID.COMMON_NAME, node_id),
                    ]
                )
            )
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - BACKDATE)
            .not_valid_after(min(start + timedelta(microseconds=life_ns // 1000), root_end))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [*(x509.DNSName(n) for n in names), *(_ip(address) if role == "manager" else ())]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_ski), critical=False
            )
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return IssuedCertificate(
            pem=certificate.public_bytes(Encoding.PEM).decode(),
            serial=serial_text(certificate),
            not_after=to_ns(certificate.not_valid_after_utc),
        )


def _moment(now: int) -> datetime:
    return datetime.fromtimestamp(now // 1_000_000_000, UTC)


def names_address(certificate_pem: str, address: str) -> bool:
    """Whether a certificate is good for a server at this IP address; a name there is not looked at."""
    names = load_certificate(certificate_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return set(_ip(address)) <= set(names.value)


def _ip(address: str) -> list[x509.GeneralName]:
    try:
        return [x509.IPAddress(ipaddress.ip_address(address))]
    except ValueError:
        return []


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError):
        # the reason may quote the key: say only that it is unusable
        raise InvalidArgument("the private key is not valid PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidArgument("the private key is not an ECDSA key")
    return key


def _request_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError) as e:
        raise InvalidArgument(f"the certificate request is not valid PEM: {e}") from e
    if not valid:
        raise InvalidArgument("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        raise InvalidArgument("the certificate request's key must be ECDSA P-256 or stronger")
    return key
