"""What the kernel's files say of a container: ps lines, cgroups, interfaces; and the process of an exec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.model.errors import InvalidArgument
from overlace.runtime.base import ExecConfig, Interface
from overlace.runtime.oci.execs import exec_failure, exec_process, whole_line_ends
from overlace.runtime.oci.stats import (
    parse_interfaces,
    parse_io,
    parse_legacy_io,
    parse_pairs,
    system_usage,
)
from overlace.runtime.oci.top import choose_rows
from overlace.runtime.oci.users import User

CONTAINER = {
    "terminal": False,
    "user": {"uid": 7, "gid": 8, "additionalGids": [8]},
    "args": ["sleep"],
    "env": ["PATH=/bin", "A=1", "HOME=/home/seven"],
    "cwd": "/var",
    "capabilities": {"bounding": ["CAP_CHOWN"], "effective": [], "permitted": []},
    "noNewPrivileges": True,
}


def test_an_exec_is_as_its_container_but_for_what_is_asked() -> None:
    made = exec_process(CONTAINER, ExecConfig(argv=("id",)), None, False)
    assert made == CONTAINER | {"args": ["id"]}
    asked = ExecConfig(argv=("sh",), env=("A=2",), workdir="/tmp", tty=True, size=(30, 90))
    made = exec_process(CONTAINER, asked, User(0, 0, (0,), "/root"), False)
    assert made["env"] == ["PATH=/bin", "A=2", "HOME=/root", "TERM=xterm"]
    assert made["cwd"] == "/tmp" and made["consoleSize"] == {"height": 30, "width": 90}
    assert made["user"]["uid"] == 0 and made["capabilities"]["effective"] == ["CAP_CHOWN"]
    made = exec_process(CONTAINER, ExecConfig(argv=("sh",), privileged=True), None, True)
    assert "CAP_SYS_ADMIN" in made["capabilities"]["bounding"] and not made["noNewPrivileges"]
    assert made["capabilities"]["effective"] == [], "not root"


def test_what_a_shell_would_say() -> None:
    assert exec_failure('exec: "x": executable file not found in $PATH')[1] == 127
    assert exec_failure("exec /etc/passwd: permission denied")[1] == 126
    assert exec_failure("cgroup is frozen") == ("OCI runtime exec failed: cgroup is frozen", 255)


@given(st.lists(st.text("a\r\n", min_size=1).map(str.encode)))
def test_lines_end_alike_however_they_come_in_pieces(pieces: list[bytes]) -> None:
    made, before = b"", b""
    for piece in pieces:
        made, before = made + whole_line_ends(piece, before), piece[-1:]
    assert made == whole_line_ends(b"".join(pieces), b"")
    assert made.count(b"\n") == made.count(b"\r\n") and made.replace(b"\r", b"") == b"".join(pieces).replace(
        b"\r", b""
    )


def test_lines_of_ps() -> None:
    text = "UID PID CMD\nroot 1 init\nroot 22 sh -c a  b\n"
    assert choose_rows(text, frozenset({22, 23})) == (["UID", "PID", "CMD"], [["root", "22", "sh -c a  b"]])
    with pytest.raises(InvalidArgument, match="Couldn't find PID field"):
        choose_rows("CMD\ninit\n", frozenset({1}))


def test_files_of_cgroups_and_proc() -> None:
    assert parse_pairs("anon 5\nfile 6\nodd\n") == {"anon": 5, "file": 6}
    assert parse_io("8:0 rbytes=1 wbytes=2 rios=3\n253:1 \n") == ((8, 0, "read", 1), (8, 0, "write", 2))
    legacy = parse_legacy_io("8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\nTotal 3\n")
    assert legacy == ((8, 0, "read", 1), (8, 0, "write", 2))
    dev = "h1\nh2\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"
    assert parse_interfaces(dev) == (Interface("eth0", 1, 2, 3, 4, 5, 6, 7, 8),)
    assert system_usage("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n") == 28 * 10_000_000
    assert (parse_io(""), parse_interfaces(""), system_usage("")) == ((), (), 0)
