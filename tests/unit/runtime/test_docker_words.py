"""What runtime docker says to a Docker Engine and understands of its answers: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.daemon.runtimes import choose_kind
from overlace.model.errors import FailedPrecondition, InvalidArgument
from overlace.runtime.auth import decode_auth, encode_auth
from overlace.runtime.base import ContainerConfig, Healthcheck, LogLine, LogOptions, Mount, RegistryAuth
from overlace.runtime.docker.convert import container_of, create_body, seconds, timestamp
from overlace.runtime.docker.gate import why_not_run
from overlace.runtime.docker.output import LogReader, log_params
from overlace.runtime.oci.spec import HostMount

CONFIG = ContainerConfig(id="ab" * 32, name="web.1", image="web:1", netns="")


def body(config=CONFIG, version=(1, 41), files=()):
    return create_body(config, ("/web",), "/gate", files, "/data", version)


def test_a_container_starts_at_the_gate_and_without_a_network():
    made = body()
    assert (made["Entrypoint"], made["Cmd"]) == (["/.overlace/hold"], ["/web"])
    assert made["HostConfig"]["NetworkMode"] == "none"
    assert made["HostConfig"]["RestartPolicy"] == {"Name": "no"}
    assert made["Labels"] == {"overlace.container": CONFIG.id, "overlace.data-root": "/data"}
    assert "User" not in made and "WorkingDir" not in made and "Healthcheck" not in made  # the image's own


def test_mounts_of_each_type_and_files_keep_what_was_asked():
    config = ContainerConfig(
        id="ab" * 32,
        name="",
        image="web:1",
        netns="",
        mounts=(
            Mount("bind", "/b", source="/s", read_only=True, propagation="rslave"),
            Mount("volume", "/v", source="data", no_copy=True),
            Mount("tmpfs", "/t", tmpfs_size=4096, tmpfs_mode=0o700),
        ),
    )
    gate, bind, volume, tmpfs, file = body(config, files=(HostMount("/f", "/run/secrets/k", True),))[
        "HostConfig"
    ]["Mounts"]
    assert gate["Target"] == "/.overlace" and gate["ReadOnly"]
    assert bind["BindOptions"] == {"Propagation": "rslave", "NonRecursive": False} and bind["ReadOnly"]
    assert volume["VolumeOptions"] == {"NoCopy": True, "Labels": {}}
    assert tmpfs["TmpfsOptions"] == {"SizeBytes": 4096, "Mode": 0o700}
    assert file == {"Type": "bind", "Source": "/f", "Target": "/run/secrets/k", "ReadOnly": True}


@pytest.mark.parametrize(
    ("mount", "least"),
    [
        (Mount("volume", "/v", source="d", subpath="a"), (1, 45)),
        (Mount("tmpfs", "/t", tmpfs_exec=True), (1, 46)),
        (Mount("bind", "/b", source="/s", recursive_read_only="must"), (1, 44)),
    ],
)
def test_what_an_older_engine_cannot_mount_is_refused(mount, least):
    config = ContainerConfig(id="ab" * 32, name="", image="w", netns="", mounts=(mount,))
    body(config, least)
    with pytest.raises(InvalidArgument, match=rf"it needs API 1\.{least[1]} or later"):
        body(config, (1, least[1] - 1))


def test_limits_are_dockers_own_way_of_counting():
    config = ContainerConfig(
        id="ab" * 32, name="", image="w", netns="", memory=100, swap=50, swappiness=7, seccomp="unconfined"
    )
    host = body(config)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["MemorySwappiness"]) == (100, 150, 7)
    assert host["SecurityOpt"] == ["seccomp=unconfined"]


def test_a_start_interval_needs_an_engine_that_knows_it():
    config = ContainerConfig(
        id="ab" * 32, name="", image="w", netns="", healthcheck=Healthcheck(start_interval=7)
    )
    assert body(config, (1, 44))["Healthcheck"]["StartInterval"] == 7
    with pytest.raises(InvalidArgument, match=r"API 1\.43 and cannot do it"):
        body(config, (1, 43))


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:01.000000001Z", 1_000_000_001),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000_000),
        ("1970-01-01T01:00:01+01:00", 1_000_000_000),
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_timestamps(text, ns):
    assert timestamp(text) == ns


def test_whole_seconds_are_never_fewer_than_asked():
    assert [seconds(n) for n in (0, 1, 1_000_000_000, 1_000_000_001)] == [0, 1, 1, 2]


def test_a_held_container_counts_as_created():
    found = {
        "Image": "sha256:1",
        "Created": "1970-01-01T00:00:01Z",
        "State": {"Status": "running", "Pid": 7, "StartedAt": "1970-01-01T00:00:02Z", "Health": {"Status": "starting"}},
    }  # fmt: skip
    held = container_of(found, CONFIG, ("/web",), held=True)
    assert (held.status, held.pid, held.started_at, held.health) == ("created", 0, 0, None)
    runs = container_of(found, CONFIG, ("/web",), held=False)
    assert (runs.status, runs.pid, runs.started_at, runs.health) == ("running", 7, 2_000_000_000, "starting")


lines = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"") + b"\n"))
)  # fmt: skip


@given(lines=lines, cuts=st.lists(st.integers(1, 30)))
def test_log_frames_are_read_back_however_they_are_cut(lines, cuts):
    stamp = b"1970-01-01T00:00:01.000000002Z "
    stream = b"".join(
        bytes([2 if name == "stderr" else 1, 0, 0, 0]) + len(stamp + data).to_bytes(4, "big") + stamp + data
        for name, data in lines
    )
    reader, found = LogReader(tty=False), []
    for cut in [*cuts, len(stream)]:
        found += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert found == [LogLine(1_000_000_002, name, data) for name, data in lines]


def test_a_terminals_log_has_lines_and_no_frames():
    reader = LogReader(tty=True)
    found = list(reader.feed(b"1970-01-01T00:00:01Z a\r\n1970-01-01T00:00:02Z b"))
    found += reader.end()
    assert [(line.timestamp, line.data) for line in found] == [(10**9, b"a\r\n"), (2 * 10**9, b"b")]


def test_log_options_become_a_query():
    params = log_params(LogOptions(follow=True, stderr=False, since=1_500_000_000, tail=3))
    assert params == {
        "stdout": "1", "stderr": "0", "follow": "1", "timestamps": "1", "tail": "3", "since": "1.500000000",
    }  # fmt: skip


def test_credentials_come_back_as_they_were():
    auth = RegistryAuth(username="u", password="p", server="r:5000")
    assert decode_auth(encode_auth(auth)) == auth


def test_why_a_program_cannot_run(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").write_text("")
    (tmp_path / "bin/tool").chmod(0o755)
    (tmp_path / "plain").write_text("")
    (tmp_path / "link").symlink_to("/bin/tool")  # within the container's root, not ours
    assert why_not_run(tmp_path, "tool", ["PATH=/none:/bin"], "/") == ""
    assert why_not_run(tmp_path, "tool", [], "/") == ""  # Docker's default PATH
    assert why_not_run(tmp_path, "./tool", [], "/bin") == ""
    assert why_not_run(tmp_path, "/link", [], "/") == ""
    assert why_not_run(tmp_path, "tool", ["PATH=/none"], "/") == "executable file not found in $PATH"
    assert why_not_run(tmp_path, "/no", [], "/") == "no such file or directory"
    assert why_not_run(tmp_path, "/plain", [], "/") == "permission denied"


@pytest.mark.parametrize(
    ("wanted", "kept", "answers", "containers", "kind"),
    [
        ("oci", "", False, False, "oci"),
        ("docker", "", False, False, "docker"),
        ("auto", "", True, False, "docker"),
        ("auto", "", False, False, "oci"),
        ("auto", "docker", False, True, "docker"),  # its engine is only late: the containers are there
        ("auto", "oci", True, True, "oci"),
        ("auto", "oci", True, False, "docker"),
        ("docker", "oci", True, False, "docker"),
    ],
)
def test_the_runtime_is_chosen_once(wanted, kept, answers, containers, kind):
    assert choose_kind(wanted, kept, answers, containers) == kind


def test_another_runtime_would_lose_the_containers():
    with pytest.raises(FailedPrecondition, match="made by runtime oci and would be lost"):
        choose_kind("docker", "oci", True, True)
