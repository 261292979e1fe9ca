"""Every flag of `docker service create` that makes a difference inside the container, looked at from inside."""

from __future__ import annotations

from collections.abc import Callable

from .bed import Docker, Json, Swarm, eventually

Image = Callable[[str], str]


def test_the_process(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    docker = anydocker
    docker(
        *("service", "create", "-d", "--name", "proc", "--label", "team=red", "--container-label", "c=d"),
        *("--hostname", "{{.Service.Name}}-{{.Task.Slot}}", "-e", "TASK={{.Task.ID}}"),
        *("-e", "NODE={{.Node.ID}} {{.Node.Hostname}} {{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}"),
        *("-e", "SERVICE={{.Service.ID}} {{.Task.Name}} {{.Service.Labels.team}}"),
        *("--user", "7:8", "--group", "9", "--workdir", "/var", "--host", "db:10.1.1.1", "--init"),
        *("--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--ulimit", "nofile=77:99"),
        *("--sysctl", "net.ipv4.ip_unprivileged_port_start=7", "--oom-score-adj", "123"),
        *("--limit-memory", "32M", "--limit-cpu", "0.5", "--limit-pids", "50", "--stop-signal", "SIGQUIT"),
        *("--stop-grace-period", "3s", "--read-only", "--entrypoint", "/bin/sh", "--log-driver", "local"),
        *("--dns-search", "lan", "--dns-option", "ndots:3", "--log-opt", "max-size=1m"),
        *(image("app:1"), "-c", "echo $0 $1 >/dev/null; sleep 1000", "a", "b c"),
    )
    [task] = swarm.running("proc")
    node = swarm.nodes()[swarm.host_of(task)]
    service = swarm.get("/services/proc")

    def status(name: str) -> str:
        # 2: the program itself, below its init
        return swarm.inside(task, f"grep ^{name}: /proc/$(pidof sleep)/status").partition(":")[2].strip()

    environment = swarm.inside(task, "tr '\\0' '\\n' < /proc/$(pidof sleep)/environ").splitlines()
    about = f"{node['ID']} {node['Description']['Hostname']} linux/{node['Description']['Platform']['Architecture']}"
    assert f"TASK={task['ID']}" in environment and f"NODE={about}" in environment
    assert f"SERVICE={service['ID']} proc.1.{task['ID']} red" in environment
    assert swarm.inside(task, "hostname") == "proc-1"
    first = swarm.inside(task, "tr '\\0' ' ' < /proc/1/cmdline")
    assert first.startswith("/sbin/docker-init -- /bin/sh -c"), first
    assert status("Uid").split()[0] == "7" and status("Gid").split()[0] == "8"
    assert status("Groups").split() == ["8", "9"]
    assert int(status("CapBnd"), 16) == 1 << 12, "CAP_NET_ADMIN alone"
    assert swarm.inside(task, "readlink /proc/$(pidof sleep)/cwd") == "/var"
    assert swarm.inside(task, "cat /proc/$(pidof sleep)/oom_score_adj") == "123"
    limits = swarm.inside(task, "grep 'open files' /proc/$(pidof sleep)/limits").split()
    assert limits[3:5] == ["77", "99"]
    assert swarm.inside(task, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "7"
    assert "10.1.1.1\tdb" in swarm.inside(task, "cat /etc/hosts")
    resolver = swarm.inside(task, "cat /etc/resolv.conf").splitlines()
    assert "search lan" in resolver and "options ndots:3" in resolver
    assert "Read-only" in swarm.inside(task, "touch /x", check=False)
    shown = swarm.inspect(task)
    config, host = shown["Config"], shown["HostConfig"]
    assert config["Entrypoint"] == ["/bin/sh"] and config["Cmd"][-2:] == ["a", "b c"]
    assert config["StopSignal"] == "SIGQUIT" and config["Labels"]["c"] == "d"
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (32 << 20, 500_000_000, 50)
    assert host["LogConfig"] == {"Type": "local", "Config": {"max-size": "1m", "max-file": "5"}}
    for path in ("ResolvConfPath", "HostnamePath", "HostsPath", "LogPath"):
        assert shown[path].startswith("/"), path
    groups = swarm.inside(task, "cat /proc/$(pidof sleep)/cgroup")
    cgroup = next(
        line.rpartition(":")[2] for line in groups.splitlines() if "memory" in line or "0::" in line
    )
    assert shown["Id"] in cgroup


def test_mounts(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    docker = anydocker
    made = (
        "type=volume",
        "source=made-{{.Task.Slot}}",
        "target=/made",
        "volume-label=tier={{.Service.Name}}",
    )
    docker(
        *("service", "create", "-d", "--name", "mounts", "--constraint", "node.role==manager"),
        *("--mount", ",".join(made)),
        *("--mount", "type=volume,source=ram,target=/ram,volume-opt=type=tmpfs,volume-opt=device=tmpfs"),
        *("--mount", "type=bind,source=/usr/share,target=/share,readonly,bind-propagation=rslave"),
        *("--mount", "type=tmpfs,target=/tmp,tmpfs-size=65536,tmpfs-mode=0700"),
        image("app:1"),
    )
    [task] = swarm.running("mounts")
    host = swarm.host_of(task)
    mounts = {line.split()[1]: line.split() for line in swarm.inside(task, "cat /proc/mounts").splitlines()}
    assert mounts["/ram"][2] == "tmpfs" and mounts["/tmp"][2] == "tmpfs"
    assert "size=64k" in mounts["/tmp"][3] and "mode=700" in mounts["/tmp"][3]
    assert mounts["/share"][3].startswith("ro")
    volume = docker.one("volume", "inspect", "made-1", host=host)
    assert volume["Labels"] == {"tier": "mounts"}
    assert docker.one("volume", "inspect", "ram", host=host)["Options"] == {
        "type": "tmpfs",
        "device": "tmpfs",
    }
    shown = {m["Destination"]: m for m in swarm.inspect(task)["Mounts"]}
    assert shown["/made"]["Name"] == "made-1" and shown["/share"]["RW"] is False
    assert shown["/share"]["Propagation"] == "rslave"

    swarm.inside(task, "mkdir /made/part && echo inside > /made/part/f")
    docker(
        *("service", "create", "-d", "--name", "part", "--constraint", "node.role==manager"),
        *("--mount", "type=volume,source=made-1,target=/p,volume-subpath=part,volume-nocopy"),
        image("app:1"),
    )
    [task] = swarm.running("part")
    assert swarm.inside(task, "cat /p/f") == "inside"
    docker(
        *("service", "create", "-d", "--name", "nosource", "--restart-condition", "none"),
        *("--mount", "type=bind,source=/no/such,target=/x", image("app:1")),
    )
    swarm.pending("nosource", "bind source path does not exist: /no/such")
    said = docker.refused(
        "service", "create", "-d", "--mount", r"type=npipe,source=\\.\pipe\a,target=\\.\pipe\a", "x"
    )
    assert "type npipe is not supported" in said


def test_volumes_are_made_and_pruned_by_hand(anydocker: Docker, swarm: Swarm) -> None:
    docker = anydocker
    assert docker("volume", "create", "--label", "a=b", "hand") == "hand"
    assert docker("volume", "ls", "-q", "-f", "label=a=b") == "hand"
    nameless = docker("volume", "create")
    assert nameless in docker("volume", "prune", "-f") and "hand" in docker("volume", "ls", "-q")
    assert "hand" in docker("volume", "prune", "-f", "-a", "--filter", "label=a=b")
    assert docker("volume", "ls", "-q", "-f", "name=hand") == ""


def test_a_services_own_nameserver(anydocker: Docker, swarm: Swarm, image: Image, outside: str) -> None:
    """It answers what is no name of the swarm; those go on working."""
    docker = anydocker
    address = outside.removeprefix("http://").rstrip("/")
    docker("network", "create", "-d", "overlay", "names")
    docker(
        *("service", "create", "-d", "--name", "asks", "--network", "names"),
        *("--dns", "192.0.2.1", "--dns", address, image("app:1")),
    )
    [task] = swarm.running("asks")

    def answered() -> bool:
        return swarm.resolve(task, "www.example") == {address}

    eventually(answered, "the service's own nameserver is asked")
    assert swarm.resolve(task, "tasks.asks"), "names of services are the swarm's"


def test_output_that_nobody_keeps(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    docker = anydocker
    docker("service", "create", "-d", "--name", "quiet", "--log-driver", "none", image("app:1"))
    [task] = swarm.running("quiet")
    container = task["Status"]["ContainerStatus"]["ContainerID"]
    said = docker.refused("logs", container, host=swarm.host_of(task))
    assert "configured logging driver does not support reading" in said
    said = docker.refused("service", "create", "-d", "--log-driver", "syslog", image("app:1"))
    assert "log driver syslog is not supported yet" in said


def test_every_field_can_be_changed_and_taken_back(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    """The flags of `docker service update` that have no counterpart in a create: what is added comes, and goes again."""
    docker = anydocker
    docker("secret", "create", "extra", "-", stdin="s3")
    docker("config", "create", "more", "-", stdin="c0")
    docker("network", "create", "-d", "overlay", "added")
    quick = ("-d", "--update-monitor", "200ms", "--update-parallelism", "0")
    docker("service", "create", "-d", "--name", "changes", "--stop-grace-period", "1s", image("app:1"))
    [before] = swarm.running("changes")
    docker(
        *(
            "service",
            "update",
            *quick,
            "--env-add",
            "A=1",
            "--container-label-add",
            "c=d",
            "--group-add",
            "9",
        ),
        *("--mount-add", "type=tmpfs,target=/t", "--host-add", "db:10.1.1.1", "--hostname", "named"),
        *("--cap-add", "SYS_TIME", "--cap-drop", "CHOWN", "--ulimit-add", "nofile=55:66"),
        *("--sysctl-add", "net.ipv4.ip_unprivileged_port_start=9", "--secret-add", "extra"),
        *("--config-add", "source=more,target=/more", "--network-add", "added", "--dns-search-add", "lan"),
        *("--limit-pids", "44", "--oom-score-adj", "77", "--workdir", "/www", "--placement-pref-add"),
        *("spread=node.labels.zone", "--health-cmd", "true", "--health-interval", "200ms", "--publish-add"),
        *("mode=host,target=80,published=8931", "changes"),
    )
    swarm.updated("changes")
    [task] = swarm.running("changes")
    shown = swarm.inspect(task)
    config, host = shown["Config"], shown["HostConfig"]
    assert "A=1" in config["Env"] and config["Labels"]["c"] == "d" and config["Hostname"] == "named"
    assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "true"] and config["WorkingDir"] == "/www"
    assert host["GroupAdd"] == ["9"] and host["PidsLimit"] == 44 and host["OomScoreAdj"] == 77
    assert "added" in shown["NetworkSettings"]["Networks"]
    assert swarm.inside(task, "cat /run/secrets/extra /more; hostname") == "s3c0named"
    assert swarm.inside(task, "grep ' /t ' /proc/mounts | cut -d' ' -f3; ulimit -n; pwd", check=False)
    bounding = int(swarm.inside(task, "grep CapBnd /proc/1/status").split()[1], 16)
    assert bounding >> 25 & 1 and not bounding & 1, "SYS_TIME came, CHOWN went"
    assert "55" in swarm.inside(task, "grep 'open files' /proc/1/limits").split()
    docker(
        *("service", "update", *quick, "--env-rm", "A", "--container-label-rm", "c", "--group-rm", "9"),
        *("--mount-rm", "/t", "--host-rm", "db:10.1.1.1", "--hostname", "", "--cap-drop", "SYS_TIME"),
        *(
            "--cap-add",
            "CHOWN",
            "--ulimit-rm",
            "nofile",
            "--sysctl-rm",
            "net.ipv4.ip_unprivileged_port_start",
        ),
        *("--secret-rm", "extra", "--config-rm", "more", "--network-rm", "added", "--dns-search-rm", "lan"),
        *("--limit-pids", "0", "--oom-score-adj", "0", "--workdir", "", "--no-healthcheck"),
        *("--placement-pref-rm", "spread=node.labels.zone", "--publish-rm", "80", "changes"),
    )
    swarm.updated("changes")
    [after] = swarm.running("changes")
    shown = swarm.inspect(after)
    config, host = shown["Config"], shown["HostConfig"]
    old = swarm_spec(before)
    new = swarm_spec(after)
    assert (
        "A=1" not in config["Env"] and "c" not in config["Labels"] and config["Hostname"] == shown["Id"][:12]
    )
    assert not host["PidsLimit"] and host["OomScoreAdj"] == 0 and not host["GroupAdd"]
    assert list(shown["NetworkSettings"]["Networks"]) == ["bridge"]
    assert swarm.inside(after, "ls /run/secrets /more", check=False).count("No such file") == 2
    kept = {"Healthcheck", "CapabilityAdd", "CapabilityDrop", "StopGracePeriod", "Image"}
    left = {k: v for k, v in new.items() if v and k not in kept}
    assert left == {k: v for k, v in old.items() if v and k not in kept}


def swarm_spec(task: Json) -> Json:
    return dict(task["Spec"]["ContainerSpec"])
