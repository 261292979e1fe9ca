"""computenetwork.dll and vmcompute.dll!HNSCall by ctypes.

Owns the C boundary: UTF-16 buffers, GUIDs by reference, every string given to us freed with CoTaskMemFree whether the
call failed or not, HRESULTs as errors of the one tree, an export that is not there as the feature that is missing. On
Linux the same code drives a shared object with the same exports (lab/windows has one). Must not know documents.

Handles are RPC context handles of this process; who opens one closes it (`Hcn.opened`). Calls are synchronous and may
come from any thread. Source: Microsoft's HCN reference, hcsshim's hcn/hcn.go, mingw-w64's computenetwork.h.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int32, c_uint32, c_void_p
from typing import Any

import msgspec

from overlace.model.errors import Unimplemented
from overlace.network.windows.errors import HnsFailed, HnsInternal, failure

OBJECTS = {
    "Network": "Networks",
    "Endpoint": "Endpoints",
    "Namespace": "Namespaces",
    "LoadBalancer": "LoadBalancers",
    "SdnRoute": "SdnRoutes",
}
NULL_GUID = uuid.UUID(int=0)
_P = c_void_p  # every pointer: handles are 64 bits
Notify = Callable[[int, int, str], None]  # type, status, document


class ErrorRecord(msgspec.Struct):
    success: bool = msgspec.field(default=False, name="Success")
    error: str = msgspec.field(default="", name="Error")
    error_code: int = msgspec.field(default=0, name="ErrorCode")


def wide(text: str) -> ctypes.Array[ctypes.c_char]:
    """A NUL-terminated UTF-16LE buffer; c_wchar_p would be four bytes a character on Linux. Keep it in a variable until
    the call returns. Raises ValueError for a NUL inside."""
    if "\0" in text:
        raise ValueError("a text for HNS may not hold a NUL")
    data = (text + "\0").encode("utf-16-le", "surrogatepass")
    return ctypes.create_string_buffer(data, len(data))


def narrow(address: int) -> str:
    """The UTF-16LE text at `address`."""
    end = address
    while ctypes.string_at(end, 2) != b"\0\0":
        end += 2
    return ctypes.string_at(address, end - address).decode("utf-16-le", "surrogatepass")


class Library:
    """The exports, resolved when they are first called."""

    def __init__(self, hcn: Any, vmcompute: Any, free: Any, callback: Any) -> None:
        self._hcn, self._vmcompute = hcn, vmcompute
        self._free = free
        self._free.argtypes, self._free.restype = [_P], None
        self.callback = callback  # CFUNCTYPE or WINFUNCTYPE
        self._functions: dict[str, Any] = {}

    @classmethod
    def load(cls, path: str = "") -> Library:
        """The system's libraries, or the shared object at `path`. Raises Unimplemented where there is none."""
        try:
            if path:
                both = ctypes.CDLL(path)
                return cls(both, both, both.CoTaskMemFree, ctypes.CFUNCTYPE)
            if sys.platform != "win32":
                raise Unimplemented("this host has no computenetwork.dll: it is not Windows")
            return cls(
                ctypes.WinDLL("computenetwork.dll"),
                ctypes.WinDLL("vmcompute.dll"),
                ctypes.WinDLL("ole32.dll").CoTaskMemFree,
                ctypes.WINFUNCTYPE,
            )
        except (OSError, AttributeError) as e:
            raise Unimplemented(
                f"this host has no Host Networking Service ({e}): add the Windows feature Containers"
            ) from None

    def has(self, name: str) -> bool:
        """Whether the export is there: older HNS versions lack some."""
        try:
            self._function(name)
        except Unimplemented:
            return False
        return True

    def _function(self, name: str) -> Any:
        found = self._functions.get(name)
        if found is None:
            try:
                found = getattr(self._vmcompute if name == "HNSCall" else self._hcn, name)
            except AttributeError:
                where = "vmcompute.dll" if name == "HNSCall" else "computenetwork.dll"
                raise Unimplemented(
                    f"{where} of this Windows has no {name}: it came with a later HNS"
                ) from None
            found.restype = c_int32
            self._functions[name] = found
        return found

    def take(self, text: c_void_p) -> str | None:
        """The text a call left, freed; None for NULL."""
        if not text.value:
            return None
        try:
            return narrow(text.value)
        finally:
            self._free(text)

    def call(self, name: str, *arguments: Any, result: bool = False, handle: bool = False) -> Any:
        """An export that ends in an error record: `arguments`, then where the result or handle goes, then the record.

        Returns the result text (None: NULL) or the handle. Raises HnsFailed, Unimplemented for a missing export.
        """
        function = self._function(name)
        out, record = c_void_p(), c_void_p()
        tail = [ctypes.byref(out)] if result or handle else []
        pointers = [*arguments, *tail, ctypes.byref(record)]
        function.argtypes = [_P] * len(pointers)
        hr = function(*[ctypes.cast(a, _P) if isinstance(a, ctypes.Array) else a for a in pointers])
        told = self.take(record)
        text = self.take(out) if result else None
        if hr < 0 or told:
            raise failure(hr or _code(told), name, _words(told))
        return out.value or 0 if handle else text

    def plain(self, name: str, *arguments: Any) -> None:
        """An export without an error record. Raises HnsFailed."""
        function = self._function(name)
        function.argtypes = [_P] * len(arguments)
        hr = function(*arguments)
        if hr < 0:
            raise failure(hr, name)

    def hns_call(self, method: str, path: str, body: str = "") -> str:
        """HNSCall. Raises HnsFailed."""
        function = self._function("HNSCall")
        texts = [wide(method), wide(path), wide(body)]
        out = c_void_p()
        function.argtypes = [_P] * 4
        hr = function(*[ctypes.cast(t, _P) for t in texts], ctypes.byref(out))
        text = self.take(out)
        if hr < 0:
            raise failure(hr, f"HNSCall {method} {path}", text or "")
        return text or ""


def _code(record: str | None) -> int:
    try:
        return msgspec.json.decode(record or "{}", type=ErrorRecord).error_code or 0x80004005
    except msgspec.MsgspecError:
        return 0x80004005


def _words(record: str | None) -> str:
    try:
        return msgspec.json.decode(record or "{}", type=ErrorRecord).error
    except msgspec.MsgspecError:
        return record or ""


class Hcn:
    """HCN's calls with Python's types: GUIDs are UUIDs, documents JSON texts, handles integers."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._callbacks: dict[int, Any] = {}  # ctypes' thunks live as long as they are registered

    def enumerate(self, kind: str, query: str = "") -> list[uuid.UUID]:
        text = self.library.call(f"HcnEnumerate{OBJECTS[kind]}", wide(query), result=True)
        try:
            return [uuid.UUID(guid) for guid in msgspec.json.decode(text or "[]", type=list[str])]
        except (msgspec.MsgspecError, ValueError) as e:
            raise HnsInternal(f"HcnEnumerate{OBJECTS[kind]}: no list of GUIDs: {e}") from None

    def create(self, kind: str, settings: str, guid: uuid.UUID = NULL_GUID, network: int = 0) -> int:
        """A handle of the new object; an endpoint needs its network's."""
        first = [c_void_p(network)] if kind == "Endpoint" else []
        made: int = self.library.call(f"HcnCreate{kind}", *first, _guid(guid), wide(settings), handle=True)
        return made

    def open(self, kind: str, guid: uuid.UUID) -> int:
        handle: int = self.library.call(f"HcnOpen{kind}", _guid(guid), handle=True)
        return handle

    def modify(self, kind: str, handle: int, settings: str) -> None:
        self.library.call(f"HcnModify{kind}", c_void_p(handle), wide(settings))

    def query(self, kind: str, handle: int, query: str = "") -> str:
        name = f"HcnQuery{kind}Properties"
        return self.library.call(name, c_void_p(handle), wide(query), result=True) or ""

    def delete(self, kind: str, guid: uuid.UUID) -> None:
        self.library.call(f"HcnDelete{kind}", _guid(guid))

    def close(self, kind: str, handle: int) -> None:
        self.library.plain(f"HcnClose{kind}", c_void_p(handle))

    @contextmanager
    def opened(self, kind: str, guid: uuid.UUID) -> Iterator[int]:
        """A handle for as long as it is needed."""
        handle = self.open(kind, guid)
        try:
            yield handle
        finally:
            self.close(kind, handle)

    def hns_call(self, method: str, path: str, body: str = "") -> str:
        return self.library.hns_call(method, path, body)

    def version(self) -> tuple[int, int]:
        """HNS's version. Raises HnsFailed."""
        answer = msgspec.json.decode(self.hns_call("GET", "/globals/version"))
        if not isinstance(answer, dict) or not answer.get("Success"):
            raise HnsInternal(f"HNSCall GET /globals/version: {answer}")
        output = answer.get("Output") or {}
        return int(output.get("Major", 0)), int(output.get("Minor", 0))

    def register(self, notify: Notify, network: int = 0) -> int:
        """Have `notify` called, on a thread of the library's, for events of the service or of an open network. What it
        raises is dropped: there is nobody to hear it."""

        def thunk(kind: int, context: int | None, status: int, data: int | None) -> None:
            try:
                notify(kind, status, narrow(data) if data else "")
            except Exception:
                return

        made = self.library.callback(None, c_uint32, c_void_p, c_int32, c_void_p)(thunk)
        handle = c_void_p()
        if network:
            self.library.plain(
                "HcnRegisterNetworkCallback",
                c_void_p(network),
                ctypes.cast(made, _P),
                None,
                ctypes.byref(handle),
            )
        else:
            self.library.plain(
                "HcnRegisterServiceCallback", ctypes.cast(made, _P), None, ctypes.byref(handle)
            )
        number = handle.value or 0
        self._callbacks[number] = (made, "Network" if network else "Service")
        return number

    def unregister(self, handle: int) -> None:
        """End a registration; not from inside its callback. Raises HnsFailed for a handle that is none."""
        known = self._callbacks.get(handle)
        if known is None:
            raise HnsInternal(f"{handle} is no registered callback")
        self.library.plain(f"HcnUnregister{known[1]}Callback", c_void_p(handle))
        del self._callbacks[handle]


def _guid(guid: uuid.UUID) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(guid.bytes_le, 16)


__all__ = ["Hcn", "HnsFailed", "Library", "Notify"]
