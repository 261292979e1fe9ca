"""One host's DataPath in a process of its own, entered into the host's namespace; obeys pickled calls on
stdin.

Frames: 4-byte length, pickle of (method, args, kwargs) in; of (ok, value) out. `method` "dns" serves one
question on the sockets bind_dns gives, as the resolver would. A fifth argument says at which level services are
balanced.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import sys
import threading
from pathlib import Path
from typing import Any, cast

from overlace.network.balancing import Wish
from overlace.network.linux.datapath import DataPath


def _serve_dns(udp: Any, tcp: Any) -> None:
    def answer_udp() -> None:
        udp.setblocking(True)
        while True:
            data, who = udp.recvfrom(4096)
            udp.sendto(b"udp:" + data, who)

    def answer_tcp() -> None:
        tcp.setblocking(True)
        while True:
            connection, _ = tcp.accept()
            connection.sendall(b"tcp:" + connection.recv(4096))
            connection.close()

    for target in (answer_udp, answer_tcp):
        threading.Thread(target=target, daemon=True).start()


async def _call(path: DataPath, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if method == "dns":
        _serve_dns(*await path.bind_dns(*args))
        return None
    result = getattr(path, method)(*args, **kwargs)
    return await result if asyncio.iscoroutine(result) else result


async def main() -> None:
    instance, state, address, exec_dir = sys.argv[1:5]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the data path logs must not get between the answers
    balancing = cast(Wish, sys.argv[5] if len(sys.argv) > 5 else "auto")
    path = DataPath(instance, Path(state), address, exec_dir=Path(exec_dir), balancing=balancing)
    while head := sys.stdin.buffer.read(4):
        method, args, kwargs = pickle.loads(sys.stdin.buffer.read(struct.unpack("I", head)[0]))
        try:
            answer = (True, await _call(path, method, args, kwargs))
        except BaseException as e:
            answer = (False, e)
        body = pickle.dumps(answer)
        answers.write(struct.pack("I", len(body)) + body)
        answers.flush()


if __name__ == "__main__":
    asyncio.run(main())
