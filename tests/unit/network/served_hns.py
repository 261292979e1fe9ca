"""A served HNS in this process, and the stand-in DLL that leads to it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from overlace.lab.windows.build import ensure_object
from overlace.network.hns.calls import HnsCalls
from overlace.network.hns.server import Server
from overlace.network.hns.service import HnsService, HostFacts
from overlace.network.hns.versions import LATEST, HnsVersion
from overlace.network.windows.library import Hcn, Library

from .world import HOST


class Hns:
    """On a thread of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: HnsVersion = LATEST) -> None:
        self.service = HnsService(facts=HostFacts(HOST, version))
        self.loop = asyncio.new_event_loop()
        self.server = Server(HnsCalls(self.service), 0)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.wait(self.server.open())
        monkeypatch.setenv("OVERLACE_HNS_PORT", str(self.server.port))
        self.hcn = Hcn(Library.load(str(ensure_object())))

    def wait(self, work) -> None:  # type: ignore[no-untyped-def]
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.wait(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
