"""A Boundary through the DLL: a process that makes each call by ctypes and C, in the host's network namespace, because
the stand-in dials 127.0.0.1 of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hns_bed import Answer

from overlace.lab.windows.build import ensure_object
from overlace.network.linux.netns import run_inside

WORKER = Path(__file__).with_name("hns_dll_worker.py")


class Dll:
    """`runner`: the command of another Python than this one; CONTROL in it becomes the port to connect to."""

    def __init__(
        self,
        port: int,
        where: Path | None = None,
        runner: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        def listen() -> socket.socket:
            return socket.create_server(("127.0.0.1", 0))

        listener = run_inside(where, listen) if where else listen()
        listener.settimeout(60)
        control = str(listener.getsockname()[1])
        inside = ["nsenter", f"--net={where}"] if where else []
        here = [sys.executable, str(WORKER), control, "--library", str(ensure_object())]
        command = [part.replace("CONTROL", control) for part in runner] or here
        self._process = subprocess.Popen(
            [*inside, *command],
            env={**os.environ, **(environment or {}), "OVERLACE_HNS_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if runner else None,
            stderr=subprocess.DEVNULL if runner else None,
        )
        with listener:
            self._socket = listener.accept()[0]
        self._answers = self._socket.makefile("rb")
        self.platform, self.version = json.loads(self._answers.readline())

    def call(self, operation: str, handle: int = 0, guid: str = "-", document: str | None = None) -> Answer:
        self._socket.sendall(json.dumps([operation, handle, guid, document]).encode() + b"\n")
        return Answer(*json.loads(self._answers.readline()))

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait(30)
