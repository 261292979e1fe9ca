"""One host's driver in a process of its own, entered into the host's namespace; obeys pickled calls on stdin. System
`hns` is a WindowsDriver on the HNS that OVERLACE_HNS_PORT leads to, every other an OverlayDriver.

Frames: 4-byte length, pickle of (method, args, kwargs) in; of (ok, value) out. `apply_view` takes NetView
entries; `many` runs several calls at once. The event loop goes on between calls, so a resolver that died is seen.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any

from overlace.lab.windows.build import ensure_object
from overlace.model.netview import NetView
from overlace.network.base import NetworkDriver
from overlace.network.driver import OverlayDriver
from overlace.network.linux.datapath import DataPath
from overlace.network.linux.resolver.names import ResolverProcess
from overlace.network.windows.driver import WindowsDriver
from overlace.network.windows.library import Hcn, Library


class Worker:
    def __init__(self, driver: NetworkDriver) -> None:
        self.driver = driver
        self.view = NetView()

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if method == "change":
            put, remove = args
            for key in remove:
                self.view.remove(key)
            for entry in put:
                self.view.put(entry)
            await self.driver.apply_view(self.view, set(remove) | {e.key for e in put})
            return None
        if method == "many":
            return await asyncio.gather(*(self.call(*c) for c in args))
        result = getattr(self.driver, method)(*args, **kwargs)
        return await result if asyncio.iscoroutine(result) else result


async def main() -> None:
    instance, state, address, exec_dir, system, *upstreams = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    driver: NetworkDriver
    if system == "hns":
        hcn = Hcn(Library.load(str(ensure_object())))
        driver = WindowsDriver(hcn, Path(state) / "network", address, upstreams=upstreams)
    else:
        path = DataPath(instance, Path(state), address, exec_dir=Path(exec_dir))
        driver = OverlayDriver(
            path,
            Path(state) / "network",
            os=system,
            upstreams=upstreams,
            resolv_conf=Path("/dev/null"),
            make_names=partial(ResolverProcess, folder=Path(exec_dir)),
        )
    worker = Worker(driver)
    loop = asyncio.get_running_loop()

    def read() -> bytes:
        head = sys.stdin.buffer.read(4)
        return sys.stdin.buffer.read(struct.unpack("I", head)[0]) if head else b""

    while body := await loop.run_in_executor(None, read):
        try:
            answer = (True, await worker.call(*pickle.loads(body)))
        except BaseException as e:
            answer = (False, e)
        try:
            out = pickle.dumps(answer)
            pickle.loads(out)
        except Exception as e:
            out = pickle.dumps((False, RuntimeError(f"{answer[1]!r} ({e})")))
        answers.write(struct.pack("I", len(out)) + out)
        answers.flush()


if __name__ == "__main__":
    asyncio.run(main())
