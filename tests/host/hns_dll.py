"""A Boundary through the DLL: a process whose library calls go out of the stand-in, in the host's namespace.

Run as a program it answers calls on stdin: `OP HANDLE GUID N` and N bytes in, `HR HANDLE N1 N2` and texts out, like the
served protocol, but each through ctypes and C. It exists because the stand-in dials 127.0.0.1 of its own namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

from hns_bed import Answer

from overlace.lab.windows.build import ensure_object
from overlace.model.errors import OverlaceError
from overlace.network.windows.errors import HnsFailed
from overlace.network.windows.library import OBJECTS, Hcn, Library


class Dll:
    """`where`: the network namespace to be in."""

    def __init__(self, port: int, where: Path | None = None) -> None:
        inside = ["nsenter", f"--net={where}"] if where else []
        self._process = subprocess.Popen(
            [*inside, sys.executable, str(Path(__file__)), str(ensure_object())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OVERLACE_HNS_PORT": str(port)},
        )

    def call(self, operation: str, handle: int = 0, guid: str = "-", document: str | None = None) -> Answer:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([operation, handle, guid, document]).encode() + b"\n")
        self._process.stdin.flush()
        return Answer(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def perform(hcn: Hcn, operation: str, handle: int, guid: str, document: str | None) -> Answer:
    """What the operation is in the binding."""
    text = document or ""
    if operation == "HNSCall":
        head, _, body = text.partition("\n")
        method, _, path = head.partition(" ")
        return Answer(0, 0, hcn.hns_call(method, path, body))
    for verb in ("Enumerate", "Create", "Open", "Modify", "Query", "Delete", "Close"):
        if not operation.startswith(verb):
            continue
        kind = operation.removeprefix(verb)
        kind = next((k for k, plural in OBJECTS.items() if verb == "Enumerate" and plural == kind), kind)
        number = uuid.UUID(int=0) if guid == "-" else uuid.UUID(guid)
        match verb:
            case "Enumerate":
                return Answer(0, 0, json.dumps([str(g).upper() for g in hcn.enumerate(kind, text)]))
            case "Create":
                return Answer(0, hcn.create(kind, text, number, handle))
            case "Open":
                return Answer(0, hcn.open(kind, number))
            case "Modify":
                hcn.modify(kind, handle, text)
            case "Query":
                return Answer(0, 0, hcn.query(kind, handle, text))
            case "Delete":
                hcn.delete(kind, number)
            case "Close":
                hcn.close(kind, handle)
        return Answer(0)
    raise ValueError(operation)


def main() -> None:
    hcn = Hcn(Library.load(sys.argv[1]))
    for asked in sys.stdin:
        operation, handle, guid, document = json.loads(asked)
        try:
            answer = perform(hcn, operation, handle, guid, document)
        except HnsFailed as e:
            words = e.message.split(": ", 1)[1].rsplit(" (0x", 1)[0]
            record = {"Success": False, "Error": words + " ", "ErrorCode": e.hresult}
            answer = Answer(e.hresult, 0, None, json.dumps(record))
        except (OverlaceError, ValueError) as e:
            record = {"Success": False, "Error": f"{e} ", "ErrorCode": 0x80004005}
            answer = Answer(0x80004005, 0, None, json.dumps(record))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
