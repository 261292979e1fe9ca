"""What the daemon asks Windows itself by ctypes: its build, memory, our rights, private folders, an event to stop.

Owns those few calls; can be imported anywhere and works on Windows only. HNS is network/windows'. Sources:
learn.microsoft.com on each function; moby's pkg/system for the access list.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from ctypes import c_uint32, c_uint64, c_void_p, c_wchar_p
from typing import Any

_VERSION_KEY = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion"
# Full control for administrators and the system, nothing inherited (moby pkg/system SddlAdministratorsLocalSystem).
ADMINISTRATORS = "D:P(A;OICI;GA;;;BA)(A;OICI;GA;;;SY)"
_DACL_SECURITY_INFORMATION = 4
_PROTECTED_DACL = 0x80000000
_SDDL_REVISION_1 = 1
_INFINITE = 0xFFFFFFFF
_EVENT_MODIFY_STATE = 2


def _library(name: str) -> Any:
    loader: Any = getattr(ctypes, "WinDLL")  # noqa: B009  the type checker knows Linux' ctypes alone
    return loader(name, use_last_error=True)


def _failed(what: str) -> OSError:
    code = getattr(ctypes, "get_last_error")()  # noqa: B009
    error: OSError = getattr(ctypes, "WinError")(code)  # noqa: B009
    error.filename = what
    return error


class _Version(ctypes.Structure):
    """RTL_OSVERSIONINFOEXW."""

    _fields_ = (
        ("size", c_uint32),
        ("major", c_uint32),
        ("minor", c_uint32),
        ("build", c_uint32),
        ("platform", c_uint32),
        ("service_pack", ctypes.c_uint16 * 128),
        ("service_pack_major", ctypes.c_uint16),
        ("service_pack_minor", ctypes.c_uint16),
        ("suites", ctypes.c_uint16),
        ("product_type", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
    )


class _Memory(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", c_uint32),
        ("load", c_uint32),
        ("total_physical", c_uint64),
        ("rest", c_uint64 * 6),
    )


def build() -> str:
    """The whole build, `10.0.20348.2527`: from RtlGetVersion, which no compatibility setting changes; the last number, of
    the update, from the registry."""
    version = _Version(size=ctypes.sizeof(_Version))
    _library("ntdll").RtlGetVersion(ctypes.byref(version))
    return f"{version.major}.{version.minor}.{version.build}.{_registry('UBR', 0)}"


def name() -> str:
    """As people know it: `Windows Server 2022 Datacenter`."""
    return str(_registry("ProductName", "Windows"))


def _registry(value: str, default: object) -> object:
    winreg = importlib.import_module("winreg")
    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _VERSION_KEY) as key:
            return winreg.QueryValueEx(key, value)[0]
    except OSError:
        return default


def memory_bytes() -> int:
    """Physical memory that Windows uses."""
    status = _Memory(length=ctypes.sizeof(_Memory))
    if not _library("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
        raise _failed("GlobalMemoryStatusEx")
    return int(status.total_physical)


def wine() -> str:
    """The version of the Wine that plays Windows here; empty on a real Windows."""
    try:
        version = _library("ntdll").wine_get_version
    except AttributeError:
        return ""
    version.restype = ctypes.c_char_p
    return str(version().decode())


def is_administrator() -> bool:
    """Whether this process may drive HNS: it is elevated."""
    return bool(_library("shell32").IsUserAnAdmin())


def keep_to_administrators(folder: str) -> None:
    """Have only administrators and the system in `folder` and in all that is made in it from now on. Raises OSError."""
    advapi, kernel = _library("advapi32"), _library("kernel32")
    descriptor = c_void_p()
    convert = advapi.ConvertStringSecurityDescriptorToSecurityDescriptorW
    convert.argtypes = [c_wchar_p, c_uint32, c_void_p, c_void_p]
    if not convert(ADMINISTRATORS, _SDDL_REVISION_1, ctypes.byref(descriptor), None):
        raise _failed("ConvertStringSecurityDescriptorToSecurityDescriptorW")
    kernel.LocalFree.argtypes = [c_void_p]
    try:
        advapi.SetFileSecurityW.argtypes = [c_wchar_p, c_uint32, c_void_p]
        if not advapi.SetFileSecurityW(folder, _DACL_SECURITY_INFORMATION | _PROTECTED_DACL, descriptor):
            raise _failed(folder)
    finally:
        kernel.LocalFree(descriptor)


@contextlib.contextmanager
def stop_event(pid: int, asked: Callable[[], None]) -> Iterator[None]:
    r"""The event `Global\overlace-daemon-stop-PID`: `asked` is called, on a thread, when an administrator sets it. Docker
    Engine on Windows has events of this kind in place of signals (daemon/debugtrap_windows.go). Raises OSError."""
    kernel = _library("kernel32")
    kernel.CreateEventW.argtypes = [c_void_p, ctypes.c_int, ctypes.c_int, c_wchar_p]
    kernel.CreateEventW.restype = c_void_p
    for function in (kernel.SetEvent, kernel.CloseHandle):
        function.argtypes = [c_void_p]
    kernel.WaitForSingleObject.argtypes = [c_void_p, c_uint32]
    event = kernel.CreateEventW(None, 1, 0, rf"Global\overlace-daemon-stop-{pid}")
    if not event:
        raise _failed("CreateEventW")
    ended = threading.Event()

    def wait() -> None:
        kernel.WaitForSingleObject(event, _INFINITE)
        if not ended.is_set():
            asked()

    waiter = threading.Thread(target=wait, name="stop event", daemon=True)
    waiter.start()
    try:
        yield
    finally:
        ended.set()
        kernel.SetEvent(event)
        waiter.join()
        kernel.CloseHandle(event)


def ask_to_stop(pid: int) -> bool:
    """Set the event of `stop_event` in the daemon of that process; False when it does not listen (yet)."""
    kernel = _library("kernel32")
    kernel.OpenEventW.argtypes = [c_uint32, ctypes.c_int, c_wchar_p]
    kernel.OpenEventW.restype = c_void_p
    for function in (kernel.SetEvent, kernel.CloseHandle):
        function.argtypes = [c_void_p]
    event = kernel.OpenEventW(_EVENT_MODIFY_STATE, 0, rf"Global\overlace-daemon-stop-{pid}")
    if not event:
        return False
    try:
        return bool(kernel.SetEvent(event))
    finally:
        kernel.CloseHandle(event)
