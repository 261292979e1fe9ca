"""What a remote endpoint stands for: somebody behind another host, or a name for what no tunnel leads to.

Owns that reading of the documents (pure). kube-proxy creates a remote endpoint for every backend that is not a container
of its host: also one per service VIP, behind this host's own address, and for backends that have a node's own address.
"""

from __future__ import annotations

from overlace.network.hns import policies as p
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork


def provider_of(e: HostComputeEndpoint) -> str:
    """The address of the host a remote endpoint is said to be behind; empty: nobody said."""
    pa = p.policy_of(e.policies, p.ProviderAddress)
    return pa.settings.provider_address if pa is not None else ""


def is_placeholder(e: HostComputeEndpoint, network: HostComputeNetwork) -> bool:
    """Whether a remote endpoint is behind this very host, as the network's own ProviderAddress says."""
    own = p.policy_of(network.policies, p.ProviderAddress)
    return e.remote and own is not None and provider_of(e) == own.settings.provider_address


def tunnel_to(e: HostComputeEndpoint, network: HostComputeNetwork) -> str:
    """The host that a remote endpoint's packets are sent to inside VXLAN; empty where none are: it is behind this very
    host, or is another host's own address."""
    provider = provider_of(e)
    if is_placeholder(e, network) or any(c.ip_address == provider for c in e.ip_configurations):
        return ""
    return provider
