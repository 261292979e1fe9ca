"""The ctypes boundary against a library of our own: who frees what, what a failure becomes, what is missing."""

from __future__ import annotations

import ctypes
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlace.lab.windows.build import ensure_object
from overlace.model.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    OverlaceError,
    Unavailable,
    Unimplemented,
)
from overlace.network.hns.errors import Code
from overlace.network.windows.errors import HnsFailed, failure
from overlace.network.windows.library import OBJECTS, Hcn, Library, narrow, wide

DOUBLE = Path(__file__).with_name("hcn_double.c")


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dll")
    command = [
        "gcc",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(folder / "d.so"),
        str(DOUBLE),
    ]
    subprocess.run(command, check=True)
    return folder / "d.so"


@pytest.fixture
def library(double: Path) -> Iterator[Library]:
    yield Library.load(str(double))
    assert ctypes.c_int.in_dll(ctypes.CDLL(str(double)), "out_there").value == 0  # every string was freed


def test_a_failure_is_of_the_one_tree_and_frees_what_came_with_it(library: Library) -> None:
    hcn = Hcn(library)
    with pytest.raises(NotFound) as e:
        hcn.query("Network", 1)
    assert isinstance(e.value, HnsFailed) and e.value.hresult == 0x803B0008
    assert e.value.message == "HcnQueryNetworkProperties: An expected policy was not found. (0x803b0008)"
    with pytest.raises(HnsFailed) as told:  # a record beside S_OK is a failure, as hcsshim has it
        hcn.query("Network", 2)
    assert told.value.hresult == 5 and "a warning" in told.value.message
    with pytest.raises(InvalidArgument, match="not json"):
        hcn.query("Network", 3)
    assert hcn.query("Network", 0x123456789ABCDEF0) == "{}"  # handles are 64 bits wide


def test_answers_that_are_no_list_are_said(library: Library) -> None:
    hcn = Hcn(library)
    assert hcn.enumerate("Network") == []
    assert hcn.enumerate("Network", "n") == []  # an empty text
    with pytest.raises(OverlaceError, match="no list of GUIDs"):
        hcn.enumerate("Network", "x")


def test_a_guid_crosses_in_windows_byte_order(library: Library) -> None:
    guid = uuid.UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
    assert Hcn(library).open("Network", guid) == 0x04 | 0x01 << 8 | 0x10 << 16


def test_a_missing_export_is_a_missing_feature(library: Library) -> None:
    assert library.has("HcnOpenNetwork") and not library.has("HcnModifyLoadBalancer")
    with pytest.raises(Unimplemented, match="has no HcnModifyLoadBalancer: it came with a later HNS"):
        Hcn(library).modify("LoadBalancer", 1, "{}")
    with pytest.raises(Unimplemented, match=r"vmcompute\.dll"):
        library.hns_call("GET", "/networks")


def test_without_the_library_there_is_no_hns(tmp_path: Path) -> None:
    with pytest.raises(Unimplemented, match="Host Networking Service"):
        Library.load(str(tmp_path / "absent.so"))
    with pytest.raises(Unimplemented, match="not Windows"):
        Library.load()


@pytest.mark.parametrize("text", ["", "plain", "é ß €", "\U0001f600 pair", "\ud800 alone"])
def test_texts_go_over_as_utf16_and_come_back(text: str) -> None:
    buffer = wide(text)
    assert len(buffer) % 2 == 0 and narrow(ctypes.addressof(buffer)) == text
    with pytest.raises(ValueError, match="NUL"):
        wide("a\0b")


def test_a_service_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERLACE_HNS_PORT", "1")
    hcn = Hcn(Library.load(str(ensure_object())))
    with pytest.raises(Unavailable, match="RPC server is unavailable"):
        hcn.enumerate("Network")
    with pytest.raises(Unavailable):
        hcn.hns_call("GET", "/networks")
    with pytest.raises(Unavailable):
        hcn.register(lambda *_: None)


def test_the_stand_in_exports_all_that_windows_does() -> None:
    """By mingw-w64's import library; a loader that finds one missing may give up altogether."""
    library = ctypes.CDLL(str(ensure_object()))
    for kind, plural in OBJECTS.items():
        for verb in ("Create", "Open", "Modify", "Delete", "Close"):
            assert hasattr(library, f"Hcn{verb}{kind}")
        assert hasattr(library, f"HcnQuery{kind}Properties") and hasattr(library, f"HcnEnumerate{plural}")
    for name in (
        "HcnQueryEndpointStats",
        "HcnRegisterNetworkCallback",
        "HcnUnregisterServiceCallback",
        "HNSCall",
    ):
        assert hasattr(library, name)
    assert library.HcnOpenGuestNetworkService() & 0xFFFFFFFF == Code.NOT_IMPLEMENTED


def test_every_code_has_its_place_in_the_tree() -> None:
    for code in Code:
        error = failure(int(code), "HcnX")
        assert error.hresult == code and 400 <= error.status < 600, code
    assert isinstance(failure(-2143617005, "HcnX"), Conflict)  # 0x803b0013, as a signed HRESULT
    assert failure(0x80004005, "HcnX").status == 500
