"""Where this manager keeps the state several managers share: etcd's folder, and the file that says it counts.

Owns `<data-root>/swarm/etcd.json` and `<data-root>/swarm/etcd/`. The file decides which store is the truth: with it
etcd is, without it SQLite, and what lies in etcd's folder is the half of a move that a crash ended. Owns that move, too.
Must not know who leads.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import cast

import msgspec
import structlog

from overlace.daemon.membership import Membership
from overlace.model.errors import Internal, OverlaceError, Unavailable
from overlace.model.objects import KINDS, PEER_PORT, Object
from overlace.runtime.oci.files import write_atomically
from overlace.security.identity import Identity
from overlace.security.tls import client_context
from overlace.store.base import Batch, Event, View
from overlace.store.etcd.client import EtcdClient, created_at
from overlace.store.etcd.member import EtcdConfig, EtcdFiles, EtcdProcess
from overlace.store.etcd.store import REVISION, plan_parts
from overlace.wire.transport import ManagerJoin, ManagerLeave, join_address, parse_address
from overlace.wire.transport_client import join_managers, leave_managers

log = structlog.get_logger(__name__)
READY_SECONDS = 30.0


class EtcdHome:
    def __init__(self, data_root: Path, identity: Identity) -> None:
        self._marker = data_root / "swarm" / "etcd.json"
        self.files = EtcdFiles(data_root / "swarm" / "etcd", identity.pair_path, identity.ca_path)

    def load(self) -> EtcdConfig | None:
        """What this manager's member is started with; None: etcd does not count here. Raises Internal."""
        try:
            return msgspec.json.decode(self._marker.read_bytes(), type=EtcdConfig)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as e:
            raise Internal(
                f"{self._marker} is damaged ({e}): restore it, or leave the swarm (--force)"
            ) from e

    def save(self, config: EtcdConfig) -> None:
        """From now on etcd is the truth."""
        write_atomically(self._marker, msgspec.json.encode(config), sync=True)
        self._sync(self._marker.parent)

    async def sweep(self) -> None:
        """Take the member and its data away; the marker first, so that a crash leaves nothing that counts."""
        self._marker.unlink(missing_ok=True)
        if self.files.folder.exists():
            nobody = EtcdConfig(name="", peer_url="", listen_url="", cluster=(), state="new", token="")
            await EtcdProcess(nobody, self.files).stop()
            await asyncio.to_thread(shutil.rmtree, self.files.folder, True)

    @staticmethod
    def _sync(folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def peer_url(advertise: str) -> str:
    """Where a manager's member is reached, from where the manager is (`host:port`)."""
    return f"https://{join_address(parse_address(advertise)[0], PEER_PORT)}"


def listen_url(listen: str) -> str:
    return f"https://{join_address(parse_address(listen)[0], PEER_PORT)}"


async def move_to_etcd(
    home: EtcdHome, view: View, node_id: str, cluster_id: str, advertise: str, listen: str
) -> EtcdProcess:
    """Copy the state of `view`, which nobody changes meanwhile, into a new etcd of one member; mark it as the truth.

    Returns the running member. Raises Unavailable, and then nothing has changed."""
    url = peer_url(advertise)
    config = EtcdConfig(
        name=node_id,
        peer_url=url,
        listen_url=listen_url(listen),
        cluster=((node_id, url),),
        state="new",
        token=cluster_id,
    )
    process = EtcdProcess(config, home.files)
    client = EtcdClient(home.files.socket)
    try:
        await home.sweep()  # of an attempt that a crash ended
        await process.start()
        await process.wait_ready(client, READY_SECONDS)
        things = (cast(Object, thing) for kind in KINDS.values() for thing in view.all(kind))
        everything = Batch(view.revision, tuple(Event(thing.kind, thing.id, None, thing) for thing in things))
        for part in plan_parts([everything]):
            await client.txn([created_at(REVISION, 0)], part)
        home.save(config)
    except BaseException:
        await process.stop()
        await home.sweep()
        raise
    finally:
        await client.close()
    log.info("the state is in etcd now", revision=view.revision)
    return process


async def enter_managers(data_root: Path, identity: Identity, membership: Membership) -> None:
    """Have this node's member taken in by the managers there are; etcd is this node's truth when it returns.

    Raises what the leader raised, or Unavailable naming each manager that could not be reached."""
    home = EtcdHome(data_root, identity)
    url = peer_url(membership.advertise_addr)
    await home.sweep()  # of an attempt that a crash ended
    request = ManagerJoin(membership.node_id, membership.advertise_addr, url)
    reasons = []
    for manager in membership.managers:
        if manager.node_id == membership.node_id:
            continue
        try:
            entry = await join_managers(manager.addr, request, client_context(identity.ca_pem, identity))
        except Unavailable as e:
            reasons.append(e.message)
            continue
        home.save(
            EtcdConfig(
                name=membership.node_id,
                peer_url=url,
                listen_url=listen_url(membership.listen_addr),
                cluster=entry.cluster,
                state="existing",
                token=entry.token,
            )
        )
        return
    raise Unavailable("; ".join(reasons) or "no other manager is known")


async def quit_managers(identity: Identity, membership: Membership) -> None:
    """Have this node's member taken out again, if any manager can be told. Never raises."""
    request = ManagerLeave(membership.node_id)
    for manager in membership.managers:
        try:
            await leave_managers(manager.addr, request, client_context(identity.ca_pem, identity))
            return
        except OverlaceError as e:
            log.warning("could not take back becoming a manager", manager=manager.addr, reason=e.message)
