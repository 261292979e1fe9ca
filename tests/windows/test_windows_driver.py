"""The Windows network driver in a Windows CPython, on our DLLs and a served HNS: a task's life, and the tables it reads
of Windows itself (here Wine's). Packets are tests/host's and the lab's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hns_bed import Served

from overlace.lab.windows.wine import command, environment, sources, windows_path

pytestmark = pytest.mark.host
SCRIPT = Path(__file__).with_name("driver_script.py")


def test_a_tasks_life_on_a_windows_python(tmp_path: Path) -> None:
    served = Served(tmp_path, "model", None, "--provider-address", "127.0.0.1")
    try:
        out, printed = tmp_path / "told.json", tmp_path / "printed.txt"
        run = command(SCRIPT, [windows_path(out), windows_path(tmp_path / "state"), *sources()], printed)
        variables = {**os.environ, **environment(), "OVERLACE_HNS_PORT": str(served.wire.port)}
        subprocess.run(
            run, env=variables, timeout=110, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        assert out.exists(), printed.read_text()
        told = json.loads(out.read_text())
    finally:
        served.end()
    assert told.get("platform") == "win32", told
    assert told["seen"] and not told["gone"]  # a port with a socket, and without
    assert ["127.0.0.1"] in [addresses for _, addresses, _, _ in told["adapters"]]
    assert all(name and mtu >= 1280 for name, _, mtu, _ in told["adapters"])
    assert told["port"] >= 32768
    assert told["sandbox"] == "c" * 64 and told["addresses"] == {"back": "10.0.1.11/24"} == told["again"]
    assert told["containers"] == [["c" * 64]]
    assert told["asked"] == "REFUSED"
    assert told["described"] == {"hns_version": "15.4", "provider_addresses": ["127.0.0.1"]}
    assert told["left"] == [0, 0, 0, 0]
