"""What certificates say, and what the CA refuses to sign."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from overlace.model.errors import InvalidArgument, Unavailable
from overlace.security.ca import (
    CertificateAuthority,
    is_issued_by,
    load_certificate,
    names_address,
    new_csr,
    new_key_pem,
    read_certificate,
)

NOW = time.time_ns()
HOUR = 3600 * 10**9


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(NOW)


def issue(ca: CertificateAuthority, role: str = "worker", **more: int) -> x509.Certificate:
    csr = new_csr(new_key_pem())
    return load_certificate(
        ca.issue(csr, node_id="n1", role=role, cluster_id="c1", now=more.pop("now", NOW), **more).pem
    )


def test_the_root_lives_20_years_and_may_sign_only(ca: CertificateAuthority) -> None:
    root = load_certificate(ca.cert_pem)
    assert root.not_valid_after_utc - root.not_valid_before_utc == timedelta(days=20 * 365, hours=1)
    basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.value.ca and basic.critical
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)


@pytest.mark.parametrize(
    ("role", "names"),
    [("worker", ["n1", "swarm-worker"]), ("manager", ["n1", "swarm-manager", "swarm-ca"])],
)
def test_a_node_certificate_says_who_what_and_where(
    ca: CertificateAuthority, role: str, names: list[str]
) -> None:
    certificate = issue(ca, role, life_ns=2 * HOUR)
    value = {a.oid: a.value for a in certificate.subject}
    assert value == {
        NameOID.COMMON_NAME: "n1",
        NameOID.ORGANIZATIONAL_UNIT_NAME: f"swarm-{role}",
        NameOID.ORGANIZATION_NAME: "c1",
    }
    extensions = certificate.extensions
    assert (
        extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.DNSName
        )
        == names
    )
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    root_ski = load_certificate(ca.cert_pem).extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    aki = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert aki.key_identifier == root_ski.value.digest
    # backdated an hour, so that a host whose clock is behind accepts it
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=3)
    facts = read_certificate(certificate.public_bytes(Encoding.PEM).decode())
    assert (facts.node_id, facts.role, facts.cluster_id) == ("n1", role, "c1")


def test_python_verifies_the_chain_strictly(ca: CertificateAuthority) -> None:
    verifier = (
        x509.verification.PolicyBuilder()
        .store(x509.verification.Store([load_certificate(ca.cert_pem)]))
        .build_server_verifier(x509.DNSName("swarm-manager"))
    )
    assert len(verifier.verify(issue(ca, "manager"), [])) == 2
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(issue(ca, "worker"), [])  # a worker is no server


def test_no_certificate_outlives_its_root() -> None:
    short = CertificateAuthority.create(NOW, timedelta(days=1))
    assert issue(short).not_valid_after_utc == load_certificate(short.cert_pem).not_valid_after_utc
    with pytest.raises(Unavailable, match=r"CA certificate expired on .* UTC"):
        issue(short, now=NOW + 25 * HOUR)


def test_weak_foreign_and_forged_requests_are_refused(ca: CertificateAuthority) -> None:
    def refused(csr: str, words: str, role: str = "worker") -> None:
        with pytest.raises(InvalidArgument, match=words):
            ca.issue(csr, node_id="n", role=role, cluster_id="c", now=NOW)

    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    weak = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    refused(builder.sign(weak, hashes.SHA256()).public_bytes(Encoding.PEM).decode(), "must be ECDSA")
    refused("hello", "not valid PEM")
    good = new_csr(new_key_pem())
    refused(good, "invalid role 'root'", role="root")
    key = ec.generate_private_key(ec.SECP256R1())
    der = bytearray(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    der[-1] ^= 1  # the signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    refused(forged, "not signed by its own key")


def test_who_signed_it_is_found_by_key_not_by_name(ca: CertificateAuthority) -> None:
    other = CertificateAuthority.create(NOW)  # same names
    pem = issue(ca).public_bytes(Encoding.PEM).decode()
    assert is_issued_by(pem, ca.cert_pem) and not is_issued_by(pem, other.cert_pem)


def test_a_key_never_shows(ca: CertificateAuthority) -> None:
    assert "PRIVATE" not in repr(ca)
    with pytest.raises(InvalidArgument) as refused:
        CertificateAuthority(ca.cert_pem, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----")
    assert "c2VjcmV0" not in str(refused.value) and refused.value.__cause__ is None
    with pytest.raises(InvalidArgument, match="does not belong"):
        CertificateAuthority(ca.cert_pem, new_key_pem())


def test_other_certificates_are_no_nodes(ca: CertificateAuthority) -> None:
    with pytest.raises(InvalidArgument, match="is no swarm node's"):
        read_certificate(ca.cert_pem)
    with pytest.raises(InvalidArgument, match="not a PEM certificate"):
        read_certificate("x")


def test_a_managers_certificate_names_its_address_and_a_workers_does_not() -> None:
    """etcd's members verify each other's address; workers are no members."""
    ca = CertificateAuthority.create(NOW)

    def issued(role: str, address: str) -> str:
        csr = new_csr(new_key_pem())
        return ca.issue(csr, node_id="n", role=role, cluster_id="c", now=NOW, address=address).pem

    for address in ("10.1.2.3", "fd00::1"):
        assert names_address(issued("manager", address), address)
        assert not names_address(issued("manager", ""), address)
        assert not names_address(issued("worker", address), address)
    assert names_address(issued("manager", ""), "m1.example"), "a name is not looked at"
