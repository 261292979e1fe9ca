"""The keys of a service that a swarm cannot honour, each with what to do instead.

Owns these words. REFUSED changes what a container may do or is: it stops a deploy unless the user says that it may be
left out. LEFT_OUT makes no difference to a service that works without it: it is named and left out.
"""

from __future__ import annotations

_RESOURCE = "use deploy.resources.limits"
_HOST = "a service's containers have namespaces of their own"

REFUSED: dict[str, str] = {
    "blkio_config": "a swarm limits no disk traffic",
    "cgroup": f"{_HOST}; leave it out",
    "cgroup_parent": "the swarm chooses the control group; leave it out",
    "cpu_count": f"{_RESOURCE}.cpus",
    "cpu_percent": f"{_RESOURCE}.cpus",
    "cpu_period": f"{_RESOURCE}.cpus",
    "cpu_quota": f"{_RESOURCE}.cpus",
    "cpu_rt_period": "a swarm has no real-time scheduling; leave it out",
    "cpu_rt_runtime": "a swarm has no real-time scheduling; leave it out",
    "cpu_shares": f"{_RESOURCE}.cpus",
    "cpuset": f"containers are not pinned to CPUs; {_RESOURCE}.cpus",
    "device_cgroup_rules": "a swarm hands out no devices; run what needs them outside of it",
    "devices": "a swarm hands out no devices; run what needs them outside of it",
    "domainname": "put the whole name into hostname",
    "gpus": "a swarm hands out no devices; reserve deploy.resources.reservations.generic_resources to place by them",
    "ipc": f"{_HOST}; leave it out",
    "label_file": "write the labels into labels or deploy.labels",
    "mac_address": "the overlay derives it from the address; leave it out",
    "models": "a swarm runs containers only",
    "network_mode": "attach the service to networks, and publish its ports",
    "oom_kill_disable": "a swarm always lets the kernel end a container without memory; leave it out",
    "pid": f"{_HOST}; leave it out",
    "platform": "place by deploy.placement.constraints, like node.platform.os==linux; images are matched on their own",
    "post_start": "let the container's command do it",
    "pre_stop": "let the container's command handle stop_signal",
    "privileged": "give it the capabilities it needs with cap_add",
    "provider": "a swarm runs containers only",
    "runtime": "the hosts choose the runtime; leave it out",
    "shm_size": "mount a tmpfs: volumes: [{type: tmpfs, target: /dev/shm, tmpfs: {size: …}}]",
    "storage_opt": "a swarm limits no disk space; leave it out",
    "use_api_socket": "bind-mount the daemon's socket",
    "userns_mode": f"{_HOST}; leave it out",
    "uts": f"{_HOST}; leave it out",
    "volume_driver": "give each volume its driver, under volumes",
    "volumes_from": "name the volumes in both services",
}

LEFT_OUT: dict[str, str] = {
    "annotations": "a swarm passes none on to the runtime",
    "attach": "it is about `docker compose up`",
    "build": "images are not built here: build and push the one that image names",
    "cgroupns_mode": "every container has its own",
    "container_name": "tasks are named SERVICE.SLOT.ID; reach the service by its own name",
    "develop": "it is about `docker compose watch`",
    "expose": "services reach every port of each other on a network they share",
    "external_links": "services reach each other by name on a network they share",
    "links": "services reach each other by name on a network they share",
    "pull_policy": "hosts pull what they do not have; deploy.update_config and --resolve-image decide on newer ones",
    "pull_refresh_after": "hosts pull what they do not have",
}
