"""docker-py, a client that negotiates, encodes and retries unlike the CLI."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import docker
import docker.errors
import docker.types
import pytest

from overlace.lab import Lab

from .bed import Swarm, eventually

Image = Callable[[str], str]


@pytest.fixture
def client(lab: Lab) -> Iterator[docker.DockerClient]:
    address = lab.manager.docker_host
    made = docker.DockerClient(base_url=address, version="auto", timeout=30)
    yield made
    made.close()
    with warnings.catch_warnings():  # docker-py leaves the connection of an exec to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_engine(client: docker.DockerClient, lab: Lab, image: Image) -> None:
    assert client.ping() and client.version()["Platform"]["Name"] == "Overlace"
    assert client.api.api_version == "1.51"
    assert client.info()["Swarm"]["ControlAvailable"]
    old = docker.DockerClient(base_url=lab.manager.docker_host, version="1.24")
    assert old.info()["Name"] == "linux-1"
    old.close()
    pulled = client.images.pull(image("app"), tag="2")
    assert pulled.tags == [image("app:2")] and pulled.attrs["Os"] == "linux"
    assert client.images.get(image("app:2")).id == pulled.id
    assert image("app:2") in [tag for one in client.images.list() for tag in one.tags]
    client.images.remove(image("app:2"))
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get(image("app:2"))
    with pytest.raises(docker.errors.NotFound, match="manifest unknown"):
        client.images.pull(image("nosuch"), tag="1")
    assert client.containers.run(image("app:1"), ["by-py"], entrypoint="echo", remove=True) == b"by-py\n"
    assert client.volumes.list() == []


def test_nodes(client: docker.DockerClient) -> None:
    nodes = {node.attrs["Description"]["Hostname"]: node for node in client.nodes.list()}
    assert set(nodes) == {"linux-1", "linux-2", "windows-1"}
    assert len(client.nodes.list(filters={"role": "worker"})) == 2
    node = nodes["linux-2"]
    spec = node.attrs["Spec"]
    assert node.update(spec | {"Labels": {"made": "by-py"}})
    node.reload()
    assert node.attrs["Spec"]["Labels"] == {"made": "by-py"}
    assert node.update(spec | {"Labels": {}})
    assert client.swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
    with pytest.raises(docker.errors.APIError, match="already part of a swarm"):
        client.swarm.init()


def test_services(client: docker.DockerClient, swarm: Swarm, image: Image) -> None:
    net = client.networks.create("pynet", driver="overlay", labels={"by": "py"})
    assert client.networks.list(filters={"label": "by=py"})[0].id == net.id
    secret = client.secrets.create(name="pysecret", data=b"s3cr3t", labels={})
    config = client.configs.create(name="pyconfig", data=b"c0nf1g", labels={})
    assert [one.name for one in client.secrets.list(filters={"names": ["pysecret"]})] == ["pysecret"]
    service = client.services.create(
        image("app:1"),
        name="py",
        networks=["pynet"],
        env=["COLOR=py"],
        secrets=[docker.types.SecretReference(secret.id, "pysecret")],
        configs=[docker.types.ConfigReference(config.id, "pyconfig", filename="/etc/pyconfig")],
        endpoint_spec=docker.types.EndpointSpec(ports={8960: 80}),
        mode=docker.types.ServiceMode("replicated", replicas=2),
        update_config=docker.types.UpdateConfig(parallelism=2, monitor=300_000_000),
        resources=docker.types.Resources(mem_limit=64 << 20),
    )
    task = swarm.running("py", 2)[0]
    assert swarm.inside(task, "cat /run/secrets/pysecret /etc/pyconfig") == "s3cr3tc0nf1g"
    assert swarm.answers(f"http://{swarm.lab.host('linux-2').address}:8960/cgi-bin/who")["color"] == "py"
    assert client.services.get("py").id == service.id and client.services.list()[0].name == "py"
    assert {one["Status"]["State"] for one in service.tasks(filters={"desired-state": "running"})} == {
        "running"
    }
    service.reload()
    assert service.scale(3)
    swarm.running("py", 3)
    service.reload()
    service.update(image=image("app:2"), fetch_current_spec=True)
    swarm.updated("py")
    assert {swarm.inside(task, "cat /etc/version") for task in swarm.running("py", 3)} == {"2"}
    eventually(
        lambda: b"".join(service.logs(stdout=True)).count(b"app 2 says hello") == 3,
        "the logs of three new tasks",
    )
    service.reload()
    service.force_update()
    swarm.updated("py")
    with pytest.raises(docker.errors.APIError, match="already exists"):
        client.services.create(image("app:1"), name="py")
    with pytest.raises(docker.errors.APIError, match="in use"):
        secret.remove()
    here = client.containers.list(filters={"label": "com.docker.swarm.service.name=py"})
    assert len(here) >= 1 and here[0].status == "running"
    assert b"app 2 says hello" in here[0].logs()
    said = here[0].exec_run(["cat", "/etc/version"])
    assert (said.exit_code, said.output) == (0, b"2\n")
    assert service.remove()
    with pytest.raises(docker.errors.NotFound):
        client.services.get("py")
    assert secret.remove() and config.remove()
    net.remove()
    with pytest.raises(docker.errors.NotFound):
        client.networks.get("pynet")


def test_a_plain_service_keeps_its_version(client: docker.DockerClient, swarm: Swarm, image: Image) -> None:
    """docker-py's own tests scale what they just created, without looking again."""
    service = client.services.create(image("app:1"), name="plain")
    swarm.running("plain")
    assert service.scale(2)
    swarm.running("plain", 2)


def test_events(client: docker.DockerClient) -> None:
    stream = client.events(decode=True, filters={"type": "secret"})
    seen: list[dict[str, Any]] = []
    arrived = threading.Event()

    def read() -> None:
        for event in stream:
            seen.append(event)
            arrived.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        secret = client.secrets.create(name="loud", data=b"x", labels={})
        assert arrived.wait(10)
        assert (seen[0]["Type"], seen[0]["Action"], seen[0]["Actor"]["ID"]) == ("secret", "create", secret.id)
    finally:
        stream.close()
        reader.join(10)
    assert not reader.is_alive()


def test_the_swarm_itself(client: docker.DockerClient) -> None:
    before = client.api.inspect_swarm()
    assert client.swarm.update(task_history_retention_limit=4)
    client.swarm.reload()
    assert client.swarm.attrs["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 4
    assert client.swarm.update(task_history_retention_limit=5)
    assert client.swarm.update(rotate_manager_token=True)
    client.swarm.reload()
    tokens = client.swarm.attrs["JoinTokens"]
    assert (
        tokens["Manager"] != before["JoinTokens"]["Manager"]
        and tokens["Worker"] == before["JoinTokens"]["Worker"]
    )
    assert client.swarm.get_unlock_key() == {"UnlockKey": ""}
    with pytest.raises(docker.errors.APIError, match="swarm is not locked"):
        client.swarm.unlock("SWMKEY-1-x")
    with pytest.raises(docker.errors.APIError, match="Removing the last manager erases"):
        client.swarm.leave()
    manager = next(node for node in client.nodes.list(filters={"role": "manager"}))
    with pytest.raises(docker.errors.APIError, match="must be demoted to worker before removal"):
        client.api.remove_node(manager.id)


def test_networks_and_tasks(client: docker.DockerClient, swarm: Swarm, image: Image) -> None:
    ipam = docker.types.IPAMConfig(
        pool_configs=[
            docker.types.IPAMPool(
                subnet="10.91.0.0/24", gateway="10.91.0.7", aux_addresses={"r": "10.91.0.9"}
            )
        ]
    )
    net = client.networks.create(
        "pywide",
        driver="overlay",
        ipam=ipam,
        attachable=True,
        options={"com.docker.network.driver.mtu": "1300"},
    )
    service = client.services.create(image("app:1"), name="pytasks", networks=["pywide"], labels={"by": "py"})
    [running] = swarm.running("pytasks")
    task = client.api.inspect_task(running["ID"])
    assert task["ServiceID"] == service.id and task["Status"]["ContainerStatus"]["ExitCode"] == 0
    assert [one["ID"] for one in client.api.tasks(filters={"label": "by=py"})] == [task["ID"]]
    assert swarm.inside(running, "cat /sys/class/net/eth0/mtu") == "1300"
    found = client.networks.get(net.id, verbose=True).attrs
    [config] = found["IPAM"]["Config"]
    assert (config["Gateway"], config["AuxiliaryAddresses"]) == ("10.91.0.7", {"r": "10.91.0.9"})
    [shown] = found["Services"]["pytasks"]["Tasks"]
    assert shown["EndpointIP"] == task["NetworksAttachments"][0]["Addresses"][0].partition("/")[0]
    assert found["Peers"][0]["Name"] == swarm.host_of(running)
    assert client.networks.get(net.id, scope="swarm").id == net.id
    unused = client.networks.create("pyunused", driver="overlay", labels={"gone": "soon"})
    pruned = client.networks.prune(filters={"label": ["gone=soon"]})
    assert pruned["NetworksDeleted"] == ["pyunused"]
    with pytest.raises(docker.errors.NotFound):
        unused.reload()
    with pytest.raises(docker.errors.APIError, match=f"network {net.id} is in use by service {service.id}"):
        net.remove()
    eventually(lambda: b"".join(client.api.service_logs(service.id, stdout=True)), "a line")
    lines = b"".join(client.api.service_logs(service.id, stdout=True, tail=1, details=True, timestamps=True))
    assert f"com.docker.swarm.task.id={task['ID']}".encode() in lines and lines.endswith(
        b"app 1 says hello\n"
    )
    usage = client.df()
    assert {"Images", "Containers", "Volumes", "BuildCache"} <= set(usage) and usage["LayersSize"] > 0
    service.remove()


def test_labels_are_all_that_changes_of_a_secret(client: docker.DockerClient) -> None:
    for kind, objects in (("secrets", client.secrets), ("configs", client.configs)):
        made = objects.create(name="relabelled", data=b"x", labels={"a": "1"})
        made.reload()
        spec, version = made.attrs["Spec"], made.attrs["Version"]["Index"]
        url = client.api._url(f"/{kind}/{{0}}/update", made.id)
        answer = client.api._post_json(url, data=spec | {"Labels": {"a": "2"}}, params={"version": version})
        assert answer.status_code == 200, answer.text
        made.reload()
        assert made.attrs["Spec"]["Labels"] == {"a": "2"}
        refused = client.api._post_json(url, data=spec | {"Labels": {}}, params={"version": version})
        assert refused.status_code == 500 and "update out of sequence" in refused.json()["message"]
        other = spec | {"Name": "other"}
        refused = client.api._post_json(url, data=other, params={"version": made.attrs["Version"]["Index"]})
        assert (
            refused.status_code == 400 and "only updates to Labels are allowed" in refused.json()["message"]
        )
        assert made.remove()


def test_exec_stats_and_top(client: docker.DockerClient, swarm: Swarm, image: Image) -> None:
    client.services.create(image("app:1"), name="pyexec", constraints=["node.role==manager"])
    [task] = swarm.running("pyexec")
    container = client.containers.get(task["Status"]["ContainerStatus"]["ContainerID"])
    ran = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 6"], demux=True)
    assert (ran.exit_code, ran.output) == (6, (b"out\n", b"err\n"))
    ran = container.exec_run("tty", tty=True, user="7", workdir="/tmp")
    assert ran.exit_code == 0 and ran.output.startswith(b"/dev/pts/")
    lines = container.exec_run("seq 3", stream=True).output
    assert b"".join(lines) == b"1\n2\n3\n"
    assert container.stats(stream=False)["memory_stats"]["usage"] > 0
    assert "httpd" in str(container.top()["Processes"])
