"""The stand-in for Docker on Windows: its rules, its paths, its record."""

from __future__ import annotations

from pathlib import Path

import pytest

from overlace.lab.windows.engine import read_drive, recorded_body
from overlace.lab.windows.engine_files import parse_hosts
from overlace.lab.windows.engine_places import resolv_conf
from overlace.lab.windows.engine_rules import Create, Drives, check_host_config, plan_config, plan_mounts
from overlace.model.errors import InvalidArgument, NotFound, Unimplemented


@pytest.fixture
def drives(tmp_path: Path) -> Drives:
    (tmp_path / "Data" / "Sub").mkdir(parents=True)
    (tmp_path / "Data" / "file").write_text("")
    return Drives({"C": tmp_path})


def test_paths_of_windows_are_found_in_any_case(drives: Drives, tmp_path: Path) -> None:
    assert drives.find("c:\\data\\SUB") == tmp_path / "Data" / "Sub"
    assert drives.find("C:/data/new/x") == tmp_path / "Data" / "new" / "x"
    assert drives.find("\\\\?\\C:\\") == tmp_path
    with pytest.raises(InvalidArgument, match="must be absolute"):
        drives.find("/etc")
    with pytest.raises(NotFound, match="no drive E:"):
        drives.find("E:\\x")


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ({"Type": "bind", "Target": "C:\\a", "Source": "C:\\Data\\file"}, "source path must be a directory"),
        ({"Type": "bind", "Target": "C:\\a"}, "field Source must not be empty"),
        (
            {
                "Type": "bind",
                "Target": "C:\\a",
                "Source": "C:\\Data",
                "BindOptions": {"Propagation": "shared"},
            },
            "invalid propagation mode: shared",
        ),
        ({"Type": "volume", "Target": "C:\\a", "Source": "aux"}, "reserved word"),
        ({"Type": "volume", "Target": "C:\\a", "ReadOnly": True}, "anonymous volumes"),
        ({"Type": "volume", "Target": ""}, "field Target must not be empty"),
        ({"Type": "volume", "Target": "a?b"}, "invalid mount path: 'a"),
        ({"Type": "cluster", "Target": "C:\\a"}, "mount type unknown"),
    ],
)
def test_mounts_are_refused_in_dockers_words(drives: Drives, mount: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        list(plan_mounts([mount], drives))


def test_what_is_not_played_is_said_so(drives: Drives) -> None:
    with pytest.raises(Unimplemented, match="named pipes"):
        list(plan_mounts([{"Type": "npipe", "Target": r"\\.\pipe\x", "Source": r"\\.\pipe\x"}], drives))
    with pytest.raises(Unimplemented, match="NetworkMode nat"):
        check_host_config({"NetworkMode": "nat"}, 2)
    with pytest.raises(InvalidArgument, match=r"from 0.01 to 2.00"):
        check_host_config({"NetworkMode": "none", "NanoCpus": 3_000_000_000}, 2)


def test_a_container_is_planned_into_its_namespace(drives: Drives) -> None:
    asked = Create(image="a", cmd=["x"], stop_timeout=3, host_config={"NetworkMode": "none", "Memory": 5})
    made = plan_config(asked, "f" * 64, "n", Path("/run/ns"), drives, 2)
    assert (made.netns, made.args, made.stop_grace, made.memory) == ("/run/ns", ("x",), 3_000_000_000, 5)


def test_name_servers_are_those_of_the_endpoints() -> None:
    said = [
        {"ServerList": ["10.0.0.1"], "Search": ["a.b"], "Domain": "d"},
        {"ServerList": ["10.0.0.1", "10.0.0.2"]},
        {},
    ]
    assert resolv_conf(said) == "nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch d a.b\n"


def test_hosts_and_drives_are_read() -> None:
    assert parse_hosts("# x\n10.0.0.1\tweb www # y\n\n") == (("web", "10.0.0.1"), ("www", "10.0.0.1"))
    assert read_drive("C=/x") == ("C", Path("/x"))
    for text in ("C", "CD=/x", "C=x"):
        with pytest.raises(InvalidArgument, match="LETTER=/FOLDER"):
            read_drive(text)


def test_the_record_keeps_json_and_of_files_only_their_size() -> None:
    assert recorded_body(b'{"a":1}', "application/json; charset=utf-8") == {"a": 1}
    assert recorded_body(b"hush", "application/x-tar") == {"bytes": 4}
    assert recorded_body(b"", "") is None
