"""`overlace hns serve`: the document service on a loopback port, one connection per call.

Owns the protocol (docs/hns.md), its limits and who hears of events. What a call means is calls.py's. Every
connection gets an answer it can read or is closed; what a client may hold of memory is bounded.

    request   OP HANDLE GUID N\\n  and N bytes of UTF-8 (N -1: no document)
    reply     HR HANDLE N1 N2\\n   and N1 bytes of result, N2 bytes of error record (-1: NULL)

HR is eight hexadecimal digits. RegisterServiceCallback and RegisterNetworkCallback (with the network's handle) keep
their connection: after the reply, `TYPE N\\n` and N bytes follow per event, until the client closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import structlog

from overlace.network.hns.calls import HnsCalls, Reply
from overlace.network.hns.errors import Code, HcnError
from overlace.network.hns.events import Event, Notification

MAX_LINE = 256
MAX_DOCUMENT = 4 << 20
SMALL = 64 << 10  # documents up to here are read without waiting for a turn
BIG_AT_ONCE = 8
MAX_CONNECTIONS = 4096
MAX_LISTENERS = 256
MAX_WAITING_EVENTS = 1024  # of one listener
LINGER = 2.0  # seconds to read what a refused client still sends
PATIENCE = 30.0  # seconds for a client to send its request and take its reply
_log = structlog.get_logger(__name__)


class Enforcer(Protocol):
    """What makes documents true; network/enforce.py has the one with packets."""

    async def follow(self) -> None:
        """Bring the data path up to what the service holds. Raises HcnError or OSError."""


class _Listener:
    def __init__(self, network: str, task: asyncio.Task[None]) -> None:
        self.network, self.task = network, task
        self.events: asyncio.Queue[Event] = asyncio.Queue(MAX_WAITING_EVENTS)


class Server:
    """Serves `calls` on 127.0.0.1:`port` (0: any free one)."""

    def __init__(self, calls: HnsCalls, port: int, enforcer: Enforcer | None = None) -> None:
        self._calls = calls
        self._port = port
        self._enforcer = enforcer
        self._server: asyncio.Server | None = None
        self._one = asyncio.Lock()
        self._big = asyncio.Semaphore(BIG_AT_ONCE)
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: set[_Listener] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self._port, backlog=2048, limit=SMALL
        )

    async def close(self) -> None:
        """Tell listeners, end every connection."""
        if self._server is None:
            return
        self._server.close()
        self._publish([Event(Notification.SERVICE_DISCONNECT, "00000000-0000-0000-0000-000000000000")])
        hearing = [listener.task for listener in self._listeners]
        if hearing:
            await asyncio.wait(hearing, timeout=LINGER)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    # -- connections -----------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError) as e:
            _log.debug("an HNS client went away", error=str(e))
        except asyncio.CancelledError:
            pass  # close() ends us, and asyncio's own callback cannot take a cancelled task (3.11)
        finally:
            self._connections -= 1
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._connections > MAX_CONNECTIONS:
                raise HcnError(Code.SERVER_TOO_BUSY, f"{MAX_CONNECTIONS} connections are open: try again")
            async with asyncio.timeout(PATIENCE):
                operation, handle, guid, length = _read_line(await _line(reader))
                if length <= SMALL:
                    document = await _document(reader, length)
        except HcnError as e:
            await _refuse(reader, writer, e)
            return
        if operation in ("RegisterServiceCallback", "RegisterNetworkCallback"):
            await self._listen(operation, handle, reader, writer)
            return
        if length > SMALL:
            async with self._big:
                try:
                    async with asyncio.timeout(PATIENCE):
                        document = await _document(reader, length)
                except HcnError as e:
                    await _refuse(reader, writer, e)
                    return
                await _send(writer, await self.call(operation, handle, guid, document))
            return
        await _send(writer, await self.call(operation, handle, guid, document))

    async def call(self, operation: str, handle: int, guid: str, document: str | None) -> Reply:
        """One call, enforced before it is answered; what cannot be enforced is taken back."""
        service = self._calls.service
        async with self._one:
            reply = Reply()
            try:
                with service.recording() as changes:
                    reply = self._calls.call(operation, handle, guid, document)
                    if self._enforcer is not None and (changes or service.changed):
                        try:
                            await self._enforcer.follow()
                        except (HcnError, OSError) as e:
                            service.restore(changes)
                            if reply.handle:
                                self._calls.forget(reply.handle)
                            await self._again()
                            raise e if isinstance(e, HcnError) else _not_enforced(e) from e
            except HcnError as e:
                return Reply.failed(e)
            except OSError as e:  # the journal, or the data path while it was brought back
                if reply.handle:
                    self._calls.forget(reply.handle)
                if self._enforcer is not None:
                    await self._again()
                return Reply.failed(HcnError(Code.REGKEY_FAILURE, f"the state cannot be written: {e}"))
            except Exception as e:  # a mistake of ours: nothing of the call stays, and the client hears of it
                _log.exception("an HNS call failed", operation=operation)
                if reply.handle:
                    self._calls.forget(reply.handle)
                if self._enforcer is not None:
                    await self._again()
                return Reply.failed(
                    HcnError(Code.UNEXPECTED, f"{operation}: {type(e).__name__}: see the log")
                )
            if self._enforcer is None:
                service.drain()
            self._publish(service.take_events())
        return reply

    async def _again(self) -> None:
        assert self._enforcer is not None
        try:
            await self._enforcer.follow()
        except (HcnError, OSError) as e:
            _log.error("the data path could not be brought back; the next call tries again", error=str(e))

    # -- events ----------------------------------------------------------------------------------------------

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            for listener in list(self._listeners):
                if listener.network in ("", event.network) or event.type is Notification.SERVICE_DISCONNECT:
                    if listener.events.full():
                        self._listeners.discard(listener)  # it does not read: its connection ends
                    else:
                        listener.events.put_nowait(event)

    async def _listen(
        self, operation: str, handle: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        network = ""
        try:
            if operation == "RegisterNetworkCallback":
                network = self._calls.network_of(handle)
            if len(self._listeners) >= MAX_LISTENERS:
                raise HcnError(Code.SERVER_TOO_BUSY, f"{MAX_LISTENERS} callbacks are registered")
        except HcnError as e:
            await _send(writer, Reply.failed(e))
            return
        task = asyncio.current_task()
        assert task is not None
        listener = _Listener(network, task)
        self._listeners.add(listener)
        gone = asyncio.ensure_future(reader.read(1))
        waiting: asyncio.Future[Event] = asyncio.ensure_future(listener.events.get())
        try:
            await _send(writer, Reply())
            while listener in self._listeners:
                done, _ = await asyncio.wait((gone, waiting), return_when=asyncio.FIRST_COMPLETED)
                if waiting not in done:
                    return
                await _send_event(writer, waiting.result())
                if waiting.result().type is Notification.SERVICE_DISCONNECT:
                    return
                waiting = asyncio.ensure_future(listener.events.get())
        finally:
            gone.cancel()
            waiting.cancel()
            self._listeners.discard(listener)


def _not_enforced(e: OSError) -> HcnError:
    code = (
        Code.NAMESPACE_ATTACH_FAILED
        if isinstance(e, (FileNotFoundError, FileExistsError))
        else Code.DEGRADED_OPERATION
    )
    return HcnError(code, str(e))


def _bad(text: str) -> HcnError:
    return HcnError(Code.BAD_PARAMETER, text)


async def _line(reader: asyncio.StreamReader) -> str:
    """The request line. Raises HcnError, EOFError when nothing came at all."""
    try:
        raw = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as e:
        if not e.partial:
            raise EOFError("no request") from None
        raise _bad("the request line does not end: write OP HANDLE GUID N and a line end") from None
    except asyncio.LimitOverrunError:
        raise _bad(f"the request line is longer than {MAX_LINE} bytes") from None
    if len(raw) > MAX_LINE:
        raise _bad(f"the request line is longer than {MAX_LINE} bytes")
    try:
        return raw.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _bad("the request line is not ASCII") from None


def _read_line(line: str) -> tuple[str, int, str, int]:
    parts = line.split(" ")
    if len(parts) != 4:
        raise _bad(f"request line {line[:80]!r}: write OP HANDLE GUID N with one blank between")
    operation, handle, guid, length = parts
    if not (handle.isascii() and handle.isdigit() and len(handle) < 20):
        raise _bad(f"HANDLE {handle!r}: write a decimal number, 0 for none")
    if length == "-1":
        return operation, int(handle), guid, -1
    if not (length.isdigit() and len(length) < 20):
        raise _bad(f"N {length!r}: write the number of bytes that follow, -1 for no document")
    if int(length) > MAX_DOCUMENT:
        raise _bad(f"N {length}: a document has at most {MAX_DOCUMENT} bytes")
    return operation, int(handle), guid, int(length)


async def _document(reader: asyncio.StreamReader, length: int) -> str | None:
    if length < 0:
        return None
    try:
        raw = await reader.readexactly(length)
    except asyncio.IncompleteReadError as e:
        raise _bad(f"the document ended after {len(e.partial)} of {length} bytes") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise HcnError(Code.INVALID_JSON, f"the document is not UTF-8: {e}") from None


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    result = reply.result.encode() if reply.result is not None else None
    record = reply.record.encode() if reply.record is not None else None
    sizes = [len(x) if x is not None else -1 for x in (result, record)]
    head = f"{reply.hr:08x} {reply.handle} {sizes[0]} {sizes[1]}\n".encode()
    writer.write(head + (result or b"") + (record or b""))
    async with asyncio.timeout(PATIENCE):
        await writer.drain()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: HcnError) -> None:
    """Answer, and read on for a moment: closing over unread bytes would reset the connection and take the answer
    with it."""
    await _send(writer, Reply.failed(error))
    writer.write_eof()
    left = MAX_DOCUMENT
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(LINGER):
            while left > 0 and (data := await reader.read(SMALL)):
                left -= len(data)


async def _send_event(writer: asyncio.StreamWriter, event: Event) -> None:
    data = event.document()
    writer.write(f"{int(event.type)} {len(data)}\n".encode() + data)
    async with asyncio.timeout(PATIENCE):
        await writer.drain()
