"""The ctypes binding through the stand-in DLL to a served HNS: events, threads, and a service that goes away."""

from __future__ import annotations

import json
import queue
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hns_bed import Served, overlay

from overlace.lab.windows.build import ensure_object
from overlace.model.errors import NotFound, Unavailable
from overlace.network.windows.library import Hcn, Library

pytestmark = pytest.mark.host
WAIT = 20


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(
        tmp_path, "model", None, "--state", str(tmp_path / "state"), "--provider-address", "192.0.2.10"
    )
    monkeypatch.setenv("OVERLACE_HNS_PORT", str(served.wire.port))
    yield served
    served.end()


@pytest.fixture
def hcn(served: Served) -> Hcn:
    return Hcn(Library.load(str(ensure_object())))


Events = queue.Queue[tuple[int, int, str]]


def following(hcn: Hcn, network: int = 0) -> tuple[int, Events]:
    heard: Events = queue.Queue()
    return hcn.register(lambda *event: heard.put(event), network), heard


def body(**more: object) -> str:
    return json.dumps({"SchemaVersion": {"Major": 2, "Minor": 0}, **overlay(), **more})


def test_events_arrive_until_they_are_not_wanted(hcn: Hcn) -> None:
    handle, heard = following(hcn)
    network = hcn.create("Network", body(Name="näme \U0001f600"))
    guid = hcn.enumerate("Network")[0]
    assert json.loads(hcn.query("Network", network))["Name"] == "näme \U0001f600"
    for number in (1, 2):
        kind, status, document = heard.get(timeout=WAIT)
        assert (kind, status, uuid.UUID(json.loads(document)["ID"])) == (number, 0, guid)
    own, only = following(hcn, network)
    hcn.unregister(handle)
    hcn.close("Network", network)
    hcn.delete("Network", guid)
    assert [only.get(timeout=WAIT)[0] for _ in range(2)] == [3, 4]
    hcn.unregister(own)
    assert heard.empty() and only.empty()


def test_a_service_that_ends_says_so_and_one_that_is_killed_is_noticed(hcn: Hcn, served: Served) -> None:
    for end in (served.end, served.kill):
        handle, heard = following(hcn)
        end()
        assert heard.get(timeout=WAIT)[0] == 0x01000000
        with pytest.raises(Unavailable):
            hcn.enumerate("Network")
        hcn.unregister(handle)
        served.start()
    assert hcn.enumerate("Network") == []
    assert hcn.version() == (15, 4)


def test_many_threads_call_at_once(hcn: Hcn) -> None:
    def one(i: int) -> str:
        guid = uuid.uuid4()
        handle = hcn.create("Network", body(**overlay(f"n{i}", 4096 + i, i)), guid)
        try:
            with hcn.opened("Network", guid) as again:
                assert again != handle
                name: str = json.loads(hcn.query("Network", again))["Name"]
        finally:
            hcn.close("Network", handle)
        hcn.delete("Network", guid)
        with pytest.raises(NotFound):
            hcn.open("Network", guid)
        return name

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(64))) == [f"n{i}" for i in range(64)]
