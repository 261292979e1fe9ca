"""From image and container config to what runs."""

from __future__ import annotations

from typing import Any

import pytest

from overlace.model.errors import InvalidArgument
from overlace.runtime.base import ContainerConfig, FileMount, Healthcheck, Mount, Ulimit
from overlace.runtime.oci.spec import (
    HostMount,
    capabilities,
    container_path,
    merge_environment,
    merge_healthcheck,
    resolve,
    runtime_spec,
    signal_number,
)
from overlace.runtime.oci.users import User, find_user

ID = "ab" * 32
IMAGE: dict[str, Any] = {
    "Entrypoint": ["/entry"],
    "Cmd": ["c1", "c2"],
    "Env": ["A=1"],
    "WorkingDir": "/app",
    "User": "web",
}


def config(**fields: Any) -> ContainerConfig:
    return ContainerConfig(**({"id": ID, "name": "n", "image": "i", "netns": "/run/netns/x"} | fields))


@pytest.mark.parametrize(
    ("entrypoint", "args", "argv"),
    [
        (None, None, ("/entry", "c1", "c2")),
        (None, ("x",), ("/entry", "x")),
        (None, (), ("/entry",)),
        (("/own",), None, ("/own",)),
        (("/own",), ("x",), ("/own", "x")),
        ((), ("x",), ("x",)),
    ],
)
def test_entrypoint_and_command(entrypoint: Any, args: Any, argv: tuple[str, ...]) -> None:
    assert resolve(config(entrypoint=entrypoint, args=args), IMAGE).argv == argv


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no command specified"):
        resolve(config(), {})
    with pytest.raises(InvalidArgument, match="no command specified"):
        resolve(config(entrypoint=()), IMAGE)


def test_values_come_from_the_image_unless_given() -> None:
    got = resolve(config(), {**IMAGE, "StopSignal": "SIGQUIT", "Volumes": {"/data": {}, "/logs": {}}})
    assert (got.cwd, got.user, got.stop_signal, got.hostname) == ("/app", "web", 3, ID[:12])
    assert got.volumes == ("/data", "/logs")
    own = config(
        workdir="/w", user="", stop_signal="SIGINT", hostname="h", mounts=(Mount("tmpfs", "/data/"),)
    )
    got = resolve(own, {**IMAGE, "Volumes": {"/data": {}, "/logs": {}}})
    assert (got.cwd, got.user, got.stop_signal, got.hostname, got.volumes) == ("/w", "", 2, "h", ("/logs",))


def test_environment_merges_unsets_and_always_has_a_path() -> None:
    assert merge_environment(["A=1", "B=2"], ["B=3", "C=4"])[1:] == ("A=1", "B=3", "C=4")
    assert merge_environment([], [])[0].startswith("PATH=/usr/local/sbin:")
    assert merge_environment(["PATH=/x", "A=1"], ["A"]) == ("PATH=/x",)
    assert "Path=c:\\windows" in merge_environment(["Path=c:\\windows"], [])


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGUSR1", 10)],
)
def test_signals(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIGNOPE", "0", "65", "RTMIN+40", "-9"])
def test_bad_signals(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"invalid signal: {name.replace('+', '.')}"):
        signal_number(name)


def test_capabilities_as_docker_counts_them() -> None:
    assert len(capabilities((), ())) == 14
    assert "CAP_NET_ADMIN" in capabilities(("net_admin",), ())
    assert "CAP_CHOWN" not in capabilities((), ("CAP_CHOWN",))
    assert capabilities((), ("ALL",)) == ()
    assert capabilities(("CHOWN",), ("ALL",)) == ("CAP_CHOWN",)
    assert len(capabilities(("ALL",), ())) == 41
    assert len(capabilities(("ALL",), ("SYS_ADMIN",))) == 40
    with pytest.raises(InvalidArgument, match='"FLY" \\(in cap_drop\\)'):
        capabilities((), ("FLY",))


def test_healthchecks_merge() -> None:
    image = {"Test": ["CMD", "img"], "Interval": 5, "Retries": 7}
    assert merge_healthcheck(None, None) is None
    assert merge_healthcheck(None, image) == Healthcheck(("CMD", "img"), interval=5, retries=7)
    own = merge_healthcheck(Healthcheck(timeout=9), image)
    assert own is not None and (own.test, own.interval, own.timeout, own.retries) == (("CMD", "img"), 5, 9, 7)
    assert merge_healthcheck(Healthcheck(("CMD", "own"), interval=2), image) == Healthcheck(
        ("CMD", "own"), interval=2
    )
    assert merge_healthcheck(Healthcheck(("NONE",)), image) is None
    assert merge_healthcheck(None, {"Test": ["NONE"]}) is None
    zero = merge_healthcheck(
        Healthcheck(("CMD", "x"), interval=0, timeout=0, retries=0, start_interval=0), None
    )
    assert zero == Healthcheck(("CMD", "x"))  # Docker reads 0 as "the default"


def test_windows_paths_become_paths_below_the_root_only_when_emulated() -> None:
    assert container_path("C:\\app\\data", True) == "/app/data"
    assert container_path("c:/app", True) == "/app"
    assert container_path("C:", True) == "/" and container_path("/x", True) == "/x"
    assert container_path("C:\\app") == "C:\\app"
    got = resolve(config(workdir="C:\\work"), {"Entrypoint": ["C:\\app\\x.exe"]}, windows=True)
    assert (got.cwd, got.argv) == ("/work", ("C:\\app\\x.exe",))  # the command line is taken as it is


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": "short"}, 'id: "short": must be 64 hex digits'),
        ({"memory": 1}, "Minimum memory limit allowed is 6MB"),
        ({"nano_cpus": 5}, "nano_cpus: 5: must be at least"),
        ({"sysctls": {"kernel.panic": "1"}}, 'sysctl "kernel.panic" is not in a separate kernel namespace'),
        ({"ulimits": (Ulimit("nope", 1, 1),)}, "invalid ulimit type: nope"),
        (
            {"ulimits": (Ulimit("nofile", 5, 1),)},
            "ulimit soft limit must be less than or equal to hard limit: 5 > 1",
        ),
        ({"oom_score_adj": 2000}, "Invalid value 2000, range for oom score adj is"),
        ({"mounts": (Mount("bind", "rel", source="/x"),)}, "mount path must be absolute"),
        ({"mounts": (Mount("bind", "/t", source="x"),)}, "mount path must be absolute"),
        ({"mounts": (Mount("tmpfs", "/"),)}, "destination can't be '/'"),
        (
            {"mounts": (Mount("volume", "/t", source="a/b"),)},
            "includes invalid characters for a local volume name",
        ),
        ({"mounts": (Mount("tmpfs", "/a"), Mount("tmpfs", "/a/"))}, "Duplicate mount point: /a/"),
        ({"files": (FileMount("rel", b""),)}, 'file target: "rel": must be an absolute path'),
        ({"stop_signal": "SIGX"}, "invalid signal: SIGX"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_made(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve(config(**fields), IMAGE)
    assert words in caught.value.message


def _spec(own: ContainerConfig, user: User | None = None, **more: Any) -> dict[str, Any]:
    return runtime_spec(own, resolve(own, IMAGE), user or User(), rootfs="/r", cgroup_path="/p/x", **more)


def test_spec_joins_the_netns_and_nothing_else_of_the_host() -> None:
    namespaces = {item["type"]: item.get("path") for item in _spec(config())["linux"]["namespaces"]}
    assert namespaces == {"network": "/run/netns/x", "pid": None, "ipc": None, "uts": None, "mount": None}


def test_spec_inner_mounts_come_after_outer_ones() -> None:
    own = config(mounts=(Mount("tmpfs", "/a/b/c"), Mount("tmpfs", "/a")))
    targets = [m["destination"] for m in _spec(own, binds=(HostMount("/src", "/a/b"),))["mounts"]]
    assert targets[-3:] == ["/a", "/a/b", "/a/b/c"]


def test_spec_limits_and_user() -> None:
    own = config(memory=32 << 20, nano_cpus=250_000_000, pids=5, ulimits=(Ulimit("core", -1, -1),), init=True)
    document = _spec(own, User(7, 8, (9,), "/h"), init=True, swap_limit=True)
    resources = document["linux"]["resources"]
    assert resources["memory"] == {"limit": 32 << 20, "swap": 64 << 20}
    assert resources["cpu"] == {"quota": 25_000, "period": 100_000} and resources["pids"] == {"limit": 5}
    process = document["process"]
    assert process["args"] == ["/sbin/docker-init", "--", "/entry", "c1", "c2"]
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]} and "HOME=/h" in process["env"]
    assert process["rlimits"] == [{"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1}]
    assert process["capabilities"]["effective"] == [] and len(process["capabilities"]["bounding"]) == 14


def test_spec_a_capability_brings_its_system_calls_back() -> None:
    def refused(*add: str) -> list[str]:
        return _spec(config(cap_add=add))["linux"]["seccomp"]["syscalls"][0]["names"]  # type: ignore[no-any-return]

    assert {"mount", "bpf", "reboot", "keyctl"} <= set(refused())
    assert "mount" not in refused("SYS_ADMIN") and "reboot" in refused("SYS_ADMIN")


PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n#c:x:9:9\nbroken\n"
GROUP = "root:x:0:\nwww:x:34:\ndocs:x:50:web,other\nother:x:51:\n"


def test_users() -> None:
    assert find_user("", PASSWD, GROUP) == User(0, 0, (0,), "/root")
    assert find_user("web", PASSWD, GROUP) == User(33, 34, (34, 50), "/srv")
    assert find_user("33", PASSWD, GROUP) == User(33, 34, (34, 50), "/srv")
    assert find_user("web:other", PASSWD, GROUP) == User(33, 51, (51,), "/srv")
    assert find_user("1234:99", "", "") == User(1234, 99, (99,), "/")
    assert find_user("web", PASSWD, GROUP, ("other", "77")).additional == (34, 50, 51, 77)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("web:nope", "unable to find group nope: no matching entries in group file"),
        ("99999999999", "uids and gids must be in range"),
    ],
)
def test_unknown_users(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        find_user(text, PASSWD, GROUP)
