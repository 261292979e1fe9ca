"""Answers calls through the DLL: `hns_dll_worker.py PORT [SOURCE…] [--library FILE]` connects to 127.0.0.1:PORT.

One JSON line in, `[OP, HANDLE, GUID, DOCUMENT]`; one out, `[HR, HANDLE, RESULT, RECORD]`. It also runs under a Windows
Python, whose standard streams cannot be piped under Wine, so it is spoken to by socket and imports nothing of Linux.
"""

from __future__ import annotations

import json
import socket
import sys
import uuid
from typing import Any

Answer = list[Any]


def perform(hcn: Any, operation: str, handle: int, guid: str, text: str) -> Answer:
    """What the operation is in the binding."""
    from overlace.network.windows.library import OBJECTS

    if operation == "HNSCall":
        head, _, body = text.partition("\n")
        method, _, path = head.partition(" ")
        return [0, 0, hcn.hns_call(method, path, body), None]
    for verb in ("Enumerate", "Create", "Open", "Modify", "Query", "Delete", "Close"):
        if not operation.startswith(verb):
            continue
        kind = operation.removeprefix(verb)
        kind = next((k for k, plural in OBJECTS.items() if verb == "Enumerate" and plural == kind), kind)
        number = uuid.UUID(int=0) if guid == "-" else uuid.UUID(guid)
        match verb:
            case "Enumerate":
                return [0, 0, json.dumps([str(g).upper() for g in hcn.enumerate(kind, text)]), None]
            case "Create":
                return [0, hcn.create(kind, text, number, handle), None, None]
            case "Open":
                return [0, hcn.open(kind, number), None, None]
            case "Modify":
                hcn.modify(kind, handle, text)
            case "Query":
                return [0, 0, hcn.query(kind, handle, text), None]
            case "Delete":
                hcn.delete(kind, number)
            case "Close":
                hcn.close(kind, handle)
        return [0, 0, None, None]
    raise ValueError(operation)


def refusal(hr: int, words: str) -> Answer:
    return [hr, 0, None, json.dumps({"Success": False, "Error": words + " ", "ErrorCode": hr})]


def main() -> None:
    port, *rest = sys.argv[1:]
    library = rest[rest.index("--library") + 1] if "--library" in rest else ""
    sys.path[:0] = [x for x in rest if not x.startswith("--") and x != library]
    from overlace.model.errors import OverlaceError
    from overlace.network.windows.errors import HnsFailed
    from overlace.network.windows.library import Hcn, Library

    with socket.create_connection(("127.0.0.1", int(port))) as control, control.makefile("rb") as asked:
        hcn = Hcn(Library.load(library))
        control.sendall(json.dumps([sys.platform, sys.version]).encode() + b"\n")
        for line in asked:
            operation, handle, guid, document = json.loads(line)
            try:
                answer = perform(hcn, operation, handle, guid, document or "")
            except HnsFailed as e:
                answer = refusal(e.hresult, e.message.split(": ", 1)[1].rsplit(" (0x", 1)[0])
            except (OverlaceError, ValueError) as e:
                answer = refusal(0x80004005, str(e))
            control.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
