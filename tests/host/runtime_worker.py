"""Runtime docker in a process of its own, driven over loopback, where it listens: `runtime_worker.py PORT SOURCE…`.

Runs in a Windows Python as well, where it is what is tested. Pickled requests and answers, each with its length in front:
(number, handle, verb, arguments) and (number, error, value). What has verbs of its own (an exec, the lines of a log) is
kept here, as a handle.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path, PurePath
from typing import Any

sys.path[:0] = sys.argv[2:]

LENGTH = 4


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ended: asyncio.Event) -> None:
    from overlace.model.errors import OverlaceError
    from overlace.runtime.base import Platform
    from overlace.runtime.docker.runtime import DockerRuntime

    objects: dict[int, Any] = {}

    def keep(made: object) -> int:
        objects[len(objects) + 1] = made
        return len(objects)

    async def do(handle: int, verb: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if verb == "make":
            host, data, run, platform = args
            return keep(DockerRuntime(host, Path(data), Path(run), platform=Platform(*platform)))
        if verb == "end":
            return ended.set()
        if verb == "python":
            return sys.platform, sys.version, sorted(sys.modules)
        it = objects[handle]
        if verb == "next":
            return await anext(it, None)
        found = getattr(it, verb)(*args, **named)
        if verb in ("logs", "output"):
            return keep(found)
        if hasattr(found, "__await__"):
            found = await found
        if verb in ("exec", "attach"):
            return keep(found)
        return str(found) if isinstance(found, PurePath) else found

    async def answer(number: int, *request: Any) -> None:
        try:
            reply = (number, None, await do(*request))
        except OverlaceError as error:
            reply = (number, (type(error).__name__, error.message), None)
        except Exception as error:
            reply = (number, ("Exception", repr(error)), None)
        data = pickle.dumps(reply)
        writer.write(len(data).to_bytes(LENGTH, "big") + data)
        await writer.drain()

    tasks = set()
    while head := await reader.read(LENGTH):
        request = pickle.loads(await reader.readexactly(int.from_bytes(head, "big")))
        task = asyncio.create_task(answer(*request))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    writer.close()


async def main() -> None:
    ended = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer, ended)

    server = await asyncio.start_server(connected, "127.0.0.1", int(sys.argv[1]))
    await ended.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
