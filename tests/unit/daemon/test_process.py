"""The daemon as a process: what it cannot use is refused in one sentence, before anything runs."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from overlace import daemon
from overlace.cli.daemon import check_options
from overlace.daemon import process
from overlace.model.errors import Conflict, InvalidArgument


def run(tmp_path: Path, **changed: str) -> None:
    options = check_options(
        data_root=str(tmp_path / "data"),
        exec_root=str(tmp_path / "exec"),
        hosts=(f"unix://{tmp_path}/s",),
        pidfile=None,
        hostname="h",
        underlay_address=None,
        insecure_registries=(),
        labels=(),
        dns=(),
        emulate_windows=None,
        log_level="error",
    )
    daemon.run(msgspec.structs.replace(options, **changed))


@pytest.mark.parametrize(
    ("option", "field"),
    [("--data-root", "data_root"), ("--exec-root", "exec_root"), ("--pidfile", "pidfile")],
)
def test_a_place_that_cannot_be_used(tmp_path: Path, option: str, field: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=f"{option} .*file"):
        run(tmp_path, **{field: str(tmp_path / "file" / "x")})


def test_a_second_daemon_on_the_same_data_root(tmp_path: Path) -> None:
    with process.only_one(tmp_path), pytest.raises(Conflict, match="another overlace daemon uses"):
        run(tmp_path, data_root=str(tmp_path))


def test_descriptors_are_taken_up_to_the_hard_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = (
        "import resource; from overlace.daemon import process;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}));"
        "process.take_descriptors(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    wanted = process.DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, process.DESCRIPTORS)
    assert int(said.stdout) == wanted
