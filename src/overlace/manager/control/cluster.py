"""Update the swarm itself: its spec and its join tokens.

Owns what may be changed of it. Must not issue certificates.
"""

from __future__ import annotations

import msgspec

from overlace.manager.control.base import Core, check_version, swarm
from overlace.manager.control.container_spec import check_log_driver
from overlace.manager.control.words import unsupported
from overlace.model.errors import InvalidArgument, NotFound
from overlace.model.objects import Cluster
from overlace.model.specs import SwarmSpec
from overlace.security.tokens import generate_token
from overlace.store.base import Put

_MIN_HEARTBEAT = 100_000_000
_MIN_CERT_EXPIRY = 3_600_000_000_000  # 1 h


class Swarm(Core):
    async def update_swarm(
        self, version: int, spec: SwarmSpec, rotate_worker_token: bool, rotate_manager_token: bool
    ) -> None:
        """Raises OutOfSequence, InvalidArgument, Unimplemented."""
        check_swarm(spec)
        async with self._lock:
            cluster = next(iter(self.store.view().all(Cluster)), None)
            if cluster is None:
                raise NotFound("the swarm has no cluster object")
            check_version(cluster.version, version)
            if spec.name and spec.name != cluster.spec.name:
                raise swarm(InvalidArgument("modification of cluster name is not allowed"))
            ca = spec.ca_config
            if (ca.signing_ca_cert, ca.signing_ca_key) != ("", "") or ca.force_rotate != (
                cluster.spec.ca_config.force_rotate
            ):
                raise unsupported("CA rotation", "leave SigningCACert, SigningCAKey and ForceRotate out")
            changed = msgspec.structs.replace(
                cluster, spec=msgspec.structs.replace(spec, name=cluster.spec.name)
            )
            if rotate_worker_token:
                changed = msgspec.structs.replace(changed, worker_token=generate_token(cluster.ca_cert_pem))
            if rotate_manager_token:
                changed = msgspec.structs.replace(changed, manager_token=generate_token(cluster.ca_cert_pem))
            await self._commit([Put(changed, expect=version)])


def check_swarm(spec: SwarmSpec) -> None:
    """Also for `swarm init`. Raises InvalidArgument or Unimplemented for the first thing wrong."""
    if spec.ca_config.node_cert_expiry < _MIN_CERT_EXPIRY:
        raise swarm(InvalidArgument("minimum certificate expiry time is: 1h0m0s"))
    if spec.ca_config.external_cas:
        raise unsupported("CAConfig.ExternalCAs", "certificates are issued by the swarm's own CA")
    if spec.dispatcher.heartbeat_period < 0:
        raise swarm(InvalidArgument("heartbeat time period cannot be a negative duration"))
    if spec.dispatcher.heartbeat_period < _MIN_HEARTBEAT:
        raise InvalidArgument(
            f"Dispatcher.HeartbeatPeriod {spec.dispatcher.heartbeat_period} ns is too short:"
            " give 100 ms or more"
        )
    if spec.encryption_config.auto_lock_managers:
        raise unsupported("EncryptionConfig.AutoLockManagers", "leave autolock off")
    check_log_driver(spec.task_defaults.log_driver, "TaskDefaults.LogDriver")
