"""HCN's cases through the binding in a Windows CPython, our DLLs in Wine's system32, and a served HNS.

What this shows: the binding's ctypes on Windows' calling convention and string types, the DLLs as Windows programs. Not
the real HNS: the answers are our service's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hns_bed import Hcn, Served
from hns_dll import WORKER, Dll
from test_hns_calls import *  # noqa: F403  # every case of the conformance suite
from test_hns_calls import MODEL_ADDRESS, Host

from overlace.lab.windows.wine import command, environment, sources

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("hns")
    served = Served(
        folder, "model", None, "--state", str(folder / "state"), "--provider-address", MODEL_ADDRESS
    )
    host = Host(served, MODEL_ADDRESS, "wire")
    try:
        runner = command(WORKER, ["CONTROL", *sources()], folder / "python.txt")
        host.dll = Dll(served.wire.port, None, runner, environment())
        host.hcn = Hcn(host.dll)
        yield host
    finally:
        host.end()


def test_it_is_a_windows_python_that_calls(one_host: Host) -> None:
    assert one_host.dll is not None and one_host.dll.platform == "win32"
    assert "MSC" in one_host.dll.version
