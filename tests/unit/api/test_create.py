"""POST /containers/create: each member is honoured, or refused with a sentence that names it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from overlace.api import codec
from overlace.api.convert.create import check_name, plan_wish
from overlace.api.convert.create_request import (
    CONFIG_UNSUPPORTED,
    HOST_UNSUPPORTED,
    CreateRequest,
    HostConfig,
    check_members,
)
from overlace.api.convert.run_options import parse_bind
from overlace.api.routes.containers import name_matches
from overlace.model.errors import InvalidArgument, OverlaceError, Unimplemented
from overlace.runtime import base

from .conftest import Api
from .doubles import FakeBackend, image, until

ID = "ab" * 32
# what docker CLI 28.2 sends for `docker run IMAGE`, apart from what is asked for
CLI = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": True, "AttachStderr": True,
    "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "app:1", "Volumes": {},
    "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": {},
    "HostConfig": {
        "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default",
        "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": False,
        "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [24, 80], "CapAdd": None, "CapDrop": None,
        "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": None, "GroupAdd": None,
        "IpcMode": "", "Cgroup": "", "Links": None, "OomScoreAdj": 0, "PidMode": "", "Privileged": False,
        "PublishAllPorts": False, "ReadonlyRootfs": False, "SecurityOpt": None, "UTSMode": "", "UsernsMode": "",
        "ShmSize": 0, "Isolation": "", "CpuShares": 0, "Memory": 0, "NanoCpus": 0, "CgroupParent": "",
        "BlkioWeight": 0, "BlkioWeightDevice": [], "BlkioDeviceReadBps": [], "BlkioDeviceWriteBps": [],
        "BlkioDeviceReadIOps": [], "BlkioDeviceWriteIOps": [], "CpuPeriod": 0, "CpuQuota": 0, "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0, "CpusetCpus": "", "CpusetMems": "", "Devices": [], "DeviceCgroupRules": None,
        "DeviceRequests": None, "MemoryReservation": 0, "MemorySwap": 0, "MemorySwappiness": -1,
        "OomKillDisable": False, "PidsLimit": 0, "Ulimits": [], "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0, "MaskedPaths": None, "ReadonlyPaths": None,
    },
    "NetworkingConfig": {"EndpointsConfig": {"default": {"IPAMConfig": None, "Links": None, "Aliases": None}}},
}  # fmt: skip


def body(host: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    return {**CLI, **config, "HostConfig": CLI["HostConfig"] | (host or {})}  # type: ignore[operator]


def plan(host: dict[str, Any] | None = None, **config: Any) -> Any:
    sent = body(host, **config)
    check_members(sent)
    asked = codec.decode(msgspec.json.encode(sent), CreateRequest)
    return plan_wish(asked, ID, "c1", False, "host1", ["80/tcp", "53/udp"])


def test_what_the_cli_sends_for_a_plain_run_is_a_plain_container() -> None:
    wish = plan()
    assert wish.config == base.ContainerConfig(id=ID, name="c1", image="app:1", netns="", hostname=ID[:12])
    assert (wish.mode, wish.ports, wish.restart.name, wish.auto_remove) == ("", (), "no", False)


OTHER = {str: "x", int: 7, bool: True}


@pytest.mark.parametrize(
    ("group", "member", "nothing"),
    [("Config", n, v) for n, v, _ in CONFIG_UNSUPPORTED]
    + [("HostConfig", n, v) for n, v, _ in HOST_UNSUPPORTED],
)
def test_what_no_host_does_is_refused_by_name(group: str, member: str, nothing: tuple[Any, ...]) -> None:
    empty = nothing[0]
    value = ["x"] if empty == [] else {"a": "b"} if empty == {} else OTHER[type(empty)]
    for good in nothing:
        plan(**({member: good} if group == "Config" else {"host": {member: good}}))
    with pytest.raises(Unimplemented, match=rf"^{group}\.{member} .* is not supported: \w+"):
        plan(**({member: value} if group == "Config" else {"host": {member: value}}))


def test_every_member_the_cli_sends_is_known() -> None:
    known = {
        f.encode_name for f in (*msgspec.structs.fields(CreateRequest), *msgspec.structs.fields(HostConfig))
    }
    known |= {n for n, _, _ in (*CONFIG_UNSUPPORTED, *HOST_UNSUPPORTED)} | {"ContainerIDFile"}
    sent = set(CLI) | set(CLI["HostConfig"])  # type: ignore[arg-type]
    assert sent - known == set()


def test_members_nobody_knows_are_refused_when_they_say_something() -> None:
    plan({"Frobnicate": ""})
    with pytest.raises(Unimplemented, match=r"HostConfig\.Frobnicate is not known"):
        plan({"Frobnicate": "yes"})


def test_each_honoured_member_reaches_the_runtime() -> None:
    wish = plan(
        {
            "Binds": ["/src:/dst:ro", "vol:/v"], "Tmpfs": {"/t": "size=1m,mode=700,exec"}, "ShmSize": 1 << 20,
            "CapAdd": ["NET_ADMIN"], "CapDrop": ["ALL"], "Dns": ["9.9.9.9"], "DnsSearch": ["x.y"],
            "DnsOptions": ["ndots:1"], "ExtraHosts": ["a:1.2.3.4", "b=::1"], "GroupAdd": ["12"], "OomScoreAdj": 5,
            "ReadonlyRootfs": True, "SecurityOpt": ["no-new-privileges", "seccomp=unconfined"],
            "Sysctls": {"net.ipv4.ip_forward": "1"}, "Memory": 64 << 20, "MemorySwap": 96 << 20, "CpuQuota": 50000,
            "CpuPeriod": 100000, "PidsLimit": 9, "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "Init": True,
            "LogConfig": {"Type": "local", "Config": {"max-size": "1m"}}, "MemorySwappiness": 3,
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        },
        Hostname="h", User="u", Env=["A=b"], Cmd=["x"], Entrypoint=["y"], WorkingDir="/w", Labels={"l": "1"},
        StopSignal="INT", StopTimeout=3, Tty=True, OpenStdin=True, StdinOnce=True, Volumes={"/anon": {}},
        Healthcheck={"Test": ["CMD", "true"], "Interval": 10**9},
    )  # fmt: skip
    c = wish.config
    assert [(m.type, m.source, m.target, m.read_only) for m in c.mounts] == [
        ("bind", "/src", "/dst", True),
        ("volume", "vol", "/v", False),
        ("volume", "", "/anon", False),
        ("tmpfs", "", "/t", False),
        ("tmpfs", "", "/dev/shm", False),
    ]
    assert c.mounts[0].create_source and c.mounts[3].tmpfs_exec and c.mounts[3].tmpfs_mode == 0o700
    assert (c.hostname, c.user, c.env, c.args, c.entrypoint, c.workdir) == (
        "h",
        "u",
        ("A=b",),
        ("x",),
        ("y",),
        "/w",
    )
    assert (c.stop_signal, c.stop_grace, c.tty, c.open_stdin, c.stdin_once) == (
        "INT",
        3 * 10**9,
        True,
        True,
        True,
    )
    assert (c.memory, c.swap, c.swappiness, c.nano_cpus, c.pids) == (64 << 20, 32 << 20, 3, 5 * 10**8, 9)
    assert (c.cap_add, c.cap_drop, c.groups, c.oom_score_adj) == (("NET_ADMIN",), ("ALL",), ("12",), 5)
    assert (c.no_new_privileges, c.seccomp, c.read_only, c.init) == (True, "unconfined", True, True)
    assert c.hosts == (("a", "1.2.3.4"), ("b", "::1")) and c.labels == {"l": "1"}
    assert (c.log_driver, c.log_max_size) == ("local", 10**6)
    assert c.healthcheck is not None and c.healthcheck.test == ("CMD", "true") and c.healthcheck.retries == 3
    assert c.ulimits == (base.Ulimit("nofile", 1, 2),) and c.sysctls == {"net.ipv4.ip_forward": "1"}
    assert (wish.dns.servers, wish.dns.search, wish.dns.options) == (("9.9.9.9",), ("x.y",), ("ndots:1",))
    assert (wish.restart.name, wish.restart.most, wish.console) == ("on-failure", 3, (24, 80))


def test_ports() -> None:
    def ports(host: dict[str, Any]) -> list[tuple[str, int, int]]:
        return [(p.protocol, p.target_port, p.published_port) for p in plan(host).ports]

    both = [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]
    assert ports({"PortBindings": {"80/tcp": both}}) == [("tcp", 80, 8080)]
    assert ports({"PortBindings": {"53/udp": [{"HostPort": ""}]}}) == [("udp", 53, 0)]
    assert ports({"PublishAllPorts": True}) == [("tcp", 80, 0), ("udp", 53, 0)]
    assert ports({"NetworkMode": "host", "PublishAllPorts": True}) == []
    # SCTP's checksum covers the ports: the container's own, or none
    assert ports({"PortBindings": {"80/sctp": [{"HostPort": "80"}]}}) == [("sctp", 80, 80)]
    assert ports({"PortBindings": {"80/sctp": [{"HostPort": ""}]}}) == [("sctp", 80, 80)]
    with pytest.raises(Unimplemented, match=r"81:80/sctp is not supported: .* publish 80:80/sctp"):
        ports({"PortBindings": {"80/sctp": [{"HostPort": "81"}]}})
    assert ports({"PortBindings": {"80/tcp": [{"HostIp": "::", "HostPort": "8080"}]}}) == [("tcp", 80, 8080)]
    one = plan({"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "80"}]}}).ports
    assert [(p.host_ip, p.published_port) for p in one] == [("127.0.0.1", 80)]
    for wrong in ("localhost", "fe80::1", "224.0.0.1"):
        with pytest.raises(InvalidArgument, match=wrong):
            ports({"PortBindings": {"80/tcp": [{"HostIp": wrong, "HostPort": "80"}]}})
    with pytest.raises(InvalidArgument, match="invalid port specification: '0/tcp'"):
        ports({"PortBindings": {"0/tcp": []}})


@pytest.mark.parametrize(
    ("host", "config", "words"),
    [
        ({"Memory": 1000}, {}, "Minimum memory limit allowed is 6MB"),
        ({"MemorySwap": 10}, {}, "always set the Memory limit"),
        ({"RestartPolicy": {"Name": "often"}}, {}, "unknown policy 'often'"),
        (
            {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}},
            {},
            "maximum retry count can only be used",
        ),
        (
            {"RestartPolicy": {"Name": "always"}, "AutoRemove": True},
            {},
            "can't create 'AutoRemove' container",
        ),
        ({"ExtraHosts": ["a"]}, {}, 'bad format for add-host: "a"'),
        ({"Binds": ["/a:/b:frob"]}, {}, "invalid mode: frob"),
        ({"Binds": ["/a:/b", "/c:/b"]}, {}, "duplicate mount point: /b"),
        ({"Binds": ["/a:b"]}, {}, "must be an absolute path: b"),
        ({"CapAdd": ["FROB"]}, {}, 'unknown capability: "FROB"'),
        ({"NetworkMode": "container:x"}, {}, "HostConfig.NetworkMode container:x is not supported"),
        ({"SecurityOpt": ["frob=1"]}, {}, "HostConfig.SecurityOpt frob=1 is not supported"),
        ({"Tmpfs": {"/t": "uid=3"}}, {}, "HostConfig.Tmpfs /t:uid=3 is not supported"),
        ({"LogConfig": {"Type": "syslog"}}, {}, "syslog"),
        ({"CpuQuota": 5}, {}, "cfs quota"),
        ({"NanoCpus": 10**9, "CpuQuota": 5000}, {}, "cannot both be set"),
        ({}, {"Env": ["=x"]}, "invalid environment variable: =x"),
        ({}, {"WorkingDir": "x"}, "working directory 'x' is invalid"),
        ({}, {"StopSignal": "0"}, "invalid signal: 0"),
        ({}, {"Healthcheck": {"Test": ["FROB"]}}, 'unknown type "FROB"'),
        ({}, {"Image": ""}, "no image specified"),
        ({}, {"Env": 7}, "Env: expected array, got int"),
    ],
)
def test_mistakes_are_told_in_dockers_words(host: dict[str, Any], config: dict[str, Any], words: str) -> None:
    with pytest.raises(OverlaceError) as caught:
        plan(host, **config)
    assert words in caught.value.message and not caught.value.swarm


def test_names() -> None:
    assert check_name("/a.b-c_9") == "a.b-c_9"
    for bad in ("a", "-ab", "a b", "a/b", ""):
        with pytest.raises(InvalidArgument, match="Invalid container name"):
            check_name(bad)


@pytest.mark.parametrize("text", ["", ":", "a:", ":b", "a:b:c:d", "vol:/x:rslave", "/a:/b:nocopy"])
def test_volumes_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_bind(text)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("we", "web web2 aweb"),
        ("^web$", "web"),
        ("^/web$", "web"),
        ("^/?web", "web web2"),
        ("web$", "web aweb"),
        ("/a", "aweb"),
    ],
)
def test_the_filter_for_names(pattern: str, found: str) -> None:
    assert [n for n in ("web", "web2", "aweb") if name_matches(pattern, n)] == found.split()


# -- the routes --------------------------------------------------------------------------------------------------


async def test_a_windows_host_says_what_to_do_instead(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlace.api.routes.single.ON_WINDOWS", True)
    status, said, _ = await api("POST", "/containers/create?name=one", body())
    assert status == 501 and "docker service create --constraint node.hostname==" in said["message"]


async def test_the_life_of_one(api: Api, backend: FakeBackend) -> None:
    status, said, _ = await api("POST", "/containers/create?name=one", body(Image="nosuch:1"))
    assert status == 404 and said["message"] == "No such image: nosuch:1", "the CLI pulls when it hears this"
    backend.runtime.stored["i"] = image("app:1")
    backend.containers.follow()
    status, made, _ = await api("POST", "/containers/create?name=one", body({"AutoRemove": False}))
    assert status == 201 and len(made["Id"]) == 64 and made["Warnings"] == []
    _, shown, _ = await api("GET", "/containers/one/json")
    assert shown["HostConfig"]["NetworkMode"] == "bridge" and shown["Config"]["AttachStdout"] is True
    assert shown["State"]["Status"] == "created"
    for verb, codes in (("start", (204, 304)), ("stop", (204, 304)), ("restart", (204, 204))):
        assert tuple([(await api("POST", f"/containers/one/{verb}"))[0] for _ in (1, 2)]) == codes, verb
    assert (await api("POST", "/containers/one/rename?name=two"))[0] == 204
    assert (await api("POST", "/containers/two/update", {"RestartPolicy": {"Name": "always"}}))[0] == 200
    _, shown, _ = await api("GET", "/containers/two/json")
    assert shown["HostConfig"]["RestartPolicy"]["Name"] == "always"
    status, said, _ = await api("POST", "/containers/two/update", {"Memory": 10**9})
    assert status == 501 and "Memory cannot be changed" in said["message"]
    assert (await api("DELETE", "/containers/two"))[0] == 409
    assert (await api("DELETE", "/containers/two?force=1"))[0] == 204
    assert (await api("GET", "/containers/two/json"))[0] == 404
    await backend.containers.close()


async def test_a_kill_is_an_event(api: Api, backend: FakeBackend) -> None:
    backend.runtime.stored["i"] = image("app:1")
    await api("POST", "/containers/create?name=one", body())
    await api("POST", "/containers/one/start")
    await api("POST", "/containers/one/kill?signal=HUP")
    await api("POST", "/containers/one/stop")
    query = {"since": "1", "until": f"{time.time() + 0.05:.3f}", "filters": '{"event":["kill","stop"]}'}
    _, found, _ = await api("GET", "/events", params=query)
    assert [(e["Action"], e["Actor"]["Attributes"].get("signal")) for e in found] == [
        ("kill", "1"),
        ("kill", "15"),
        ("stop", None),
    ]


async def test_pruning_takes_what_does_not_run(api: Api, backend: FakeBackend) -> None:
    backend.runtime.stored["i"] = image("app:1")
    ids = {}
    for name in ("one", "two"):
        ids[name] = (await api("POST", f"/containers/create?name={name}", body(Labels={"n": name})))[1]["Id"]
    await api("POST", "/containers/one/start")
    _, said, _ = await api("POST", "/containers/prune", params={"filters": '{"label":["n=none"]}'})
    assert said["ContainersDeleted"] is None
    _, said, _ = await api("POST", "/containers/prune")
    assert said["ContainersDeleted"] == [ids["two"]]
    await until(lambda: set(backend.runtime.containers) == {ids["one"]})
