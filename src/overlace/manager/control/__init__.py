"""The verbs people have: the only way api, console and cli change the store.

Owns validation, defaults and "in use" checks. `Control` has one part per noun; lists and lookups are
functions over a view. An error with `swarm` set is shown at Docker's API as `rpc error: code = X desc = Y`
(see base.py).
"""

from __future__ import annotations

from overlace.manager.control.cluster import Swarm, check_swarm
from overlace.manager.control.lookup import (
    check_filters,
    find,
    list_configs,
    list_networks,
    list_nodes,
    list_secrets,
    list_services,
    list_tasks,
    network_in_use,
    up_to_date,
)
from overlace.manager.control.networks import Networks
from overlace.manager.control.nodes import Nodes
from overlace.manager.control.secrets import Secrets
from overlace.manager.control.services import Services


class Control(Services, Networks, Secrets, Nodes, Swarm):
    """`Control(store, *, clock=time.time_ns, new_id=new_id, resolver=None)`: every change a person can make.

    One instance per store: it keeps checks and commits together with a lock of its own.
    """

    find = staticmethod(find)
    list_services = staticmethod(list_services)
    list_tasks = staticmethod(list_tasks)
    list_nodes = staticmethod(list_nodes)
    list_secrets = staticmethod(list_secrets)
    list_configs = staticmethod(list_configs)
    list_networks = staticmethod(list_networks)


__all__ = [
    "Control",
    "check_filters",
    "check_swarm",
    "find",
    "list_configs",
    "list_networks",
    "list_nodes",
    "list_secrets",
    "list_services",
    "list_tasks",
    "network_in_use",
    "up_to_date",
]
