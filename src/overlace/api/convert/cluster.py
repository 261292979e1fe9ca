"""The swarm itself: GET /swarm, `Swarm.Cluster` in GET /info, and its trust root. Pure."""

from __future__ import annotations

import base64
import functools

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from overlace.api.convert.common import Json, document, header
from overlace.model.objects import Cluster


@functools.lru_cache(maxsize=8)
def _tls_info(pem: str) -> tuple[tuple[str, str], ...]:
    if not pem:
        return ()
    certificate = x509.load_pem_x509_certificates(pem.encode())[0]
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return (
        ("TrustRoot", pem),
        ("CertIssuerSubject", base64.b64encode(certificate.subject.public_bytes()).decode()),
        ("CertIssuerPublicKey", base64.b64encode(key).decode()),
    )


def tls_info(pem: str) -> Json:
    """Trust root with subject and public key in DER, base64 (moby api/types/swarm TLSInfo)."""
    return dict(_tls_info(pem))


def cluster_info(cluster: Cluster) -> Json:
    return {
        **header(cluster),
        "Spec": document(cluster.spec),
        "TLSInfo": tls_info(cluster.ca_cert_pem),
        "RootRotationInProgress": False,
        "DefaultAddrPool": list(cluster.default_addr_pool),
        "SubnetSize": cluster.subnet_size,
        "DataPathPort": cluster.data_path_port,
    }


def swarm(cluster: Cluster) -> Json:
    return {
        **cluster_info(cluster),
        "JoinTokens": {"Worker": cluster.worker_token, "Manager": cluster.manager_token},
    }
