"""One host's data path in a process of its own, inside the host's network namespace.

Run as a program it obeys calls on stdin; `DataPathHost` is the other end. Owns that pipe only: what is called is
overlace's DataPath, as the agent calls it. Frames: 4-byte length and a pickle of (method, arguments), answered by
(seconds the call took, result) or the exception.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from overlace.lab import netns
from overlace.lab.layout import Host
from overlace.model.errors import Internal


class DataPathHost:
    """Starts the process and opens its data path. Raises Internal when the process dies, else what the call
    raised."""

    def __init__(self, host: Host) -> None:
        self.host = host
        for folder in (host.data_root, host.exec_root, str(Path(host.log).parent)):
            Path(folder).mkdir(parents=True, exist_ok=True)
        argv = [*netns.enter(host.netns), sys.executable, __file__]
        with open(host.log, "ab") as log:
            self._process = subprocess.Popen(
                [*argv, host.instance, host.data_root, host.underlay, host.exec_root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.call("open")

    def timed(self, method: str, *arguments: Any, **named: Any) -> tuple[float, Any]:
        """(seconds, result) of a call, without the time in the pipe."""
        assert self._process.stdin and self._process.stdout
        body = pickle.dumps((method, arguments, named))
        try:
            self._process.stdin.write(struct.pack("I", len(body)) + body)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the empty answer below says so
        head = self._process.stdout.read(4)
        if len(head) < 4:
            raise Internal(f"the data path of {self.host.name} ended in {method}; its log: {self.host.log}")
        answer = pickle.loads(self._process.stdout.read(struct.unpack("I", head)[0]))
        if isinstance(answer, BaseException):
            raise answer
        seconds, value = answer
        return float(seconds), value

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self.timed(method, *arguments, **named)[1]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


async def _serve() -> None:
    from overlace.network.linux.datapath import DataPath

    instance, state, address, exec_root = sys.argv[1:5]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is logged must not get between the answers
    path = DataPath(instance, Path(state), address, exec_dir=Path(exec_root))
    while head := sys.stdin.buffer.read(4):
        method, arguments, named = pickle.loads(sys.stdin.buffer.read(struct.unpack("I", head)[0]))
        began = time.perf_counter()
        answer: object
        try:
            result = getattr(path, method)(*arguments, **named)
            if asyncio.iscoroutine(result):
                result = await result
            answer = (time.perf_counter() - began, result)
        except Exception as error:
            answer = error
        body = pickle.dumps(answer)
        answers.write(struct.pack("I", len(body)) + body)
        answers.flush()


if __name__ == "__main__":
    asyncio.run(_serve())
