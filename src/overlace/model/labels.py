"""Labels this product and Docker's swarm put on nodes and containers, by name.

Owns the names only.
"""

from __future__ import annotations

EMULATED = "com.overlace.emulated"  # engine label: the operating system a host plays
OS_VERSION = "com.overlace.os-version"  # engine label: a Windows host's build
LACKS = (
    "com.overlace.lacks"  # engine label: what the host's network cannot do, names of model/capabilities.py
)

# On the containers of tasks (moby daemon/cluster/executor/container/container.go).
TASK = "com.docker.swarm.task"
TASK_ID = "com.docker.swarm.task.id"
TASK_NAME = "com.docker.swarm.task.name"
NODE_ID = "com.docker.swarm.node.id"
SERVICE_ID = "com.docker.swarm.service.id"
SERVICE_NAME = "com.docker.swarm.service.name"
