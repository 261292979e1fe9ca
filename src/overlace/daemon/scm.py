"""The daemon as a service of Windows: known to the service control manager (SCM), and run by it.

Owns the calls of the SCM by ctypes; can be imported anywhere and works on Windows only. Must not know what the service
does. Source: learn.microsoft.com, Service Functions (winsvc.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import c_int, c_uint32, c_void_p, c_wchar_p
from typing import Any

from overlace.daemon import windows
from overlace.model.errors import Conflict, Internal, NotFound, OverlaceError, PermissionDenied, Unavailable

NAME = "overlace"
DISPLAY = "Overlace"
DESCRIPTION = (
    "Swarm of Linux and Windows container hosts. Containers and their traffic go on while it is stopped."
)
RESTARTS = (1000, 5000, 30000)  # ms to wait after the first, the second and each later failure
FORGOTTEN = 86400  # seconds without failure, after which the next one counts as the first
START_SECONDS, STOP_SECONDS = 30.0, 90.0

_OWN_PROCESS, _AUTO_START, _ERROR_NORMAL = 0x10, 2, 1
_ALL_ACCESS, _DELETE, _START, _STOP, _QUERY = 0xF01FF, 0x10000, 0x10, 0x20, 0x4
_CONNECT, _CREATE = 1, 2
STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
_CONTROL_STOP, _CONTROL_INTERROGATE, _CONTROL_SHUTDOWN = 1, 4, 5
_ACCEPTS = 1 | 4  # SERVICE_ACCEPT_STOP, SERVICE_ACCEPT_SHUTDOWN
_NOT_IMPLEMENTED, _SPECIFIC = 120, 1066  # ERROR_CALL_NOT_IMPLEMENTED, ERROR_SERVICE_SPECIFIC_ERROR
_ACCESS_DENIED, _NO_SUCH, _EXISTS, _MARKED = 5, 1060, 1073, 1072
_ALREADY_RUNS, _NOT_ACTIVE, _NOT_A_SERVICE = 1056, 1062, 1063
_CONFIG_DESCRIPTION, _CONFIG_FAILURE, _CONFIG_DELAYED, _CONFIG_FAILURE_FLAG = 1, 2, 3, 4
_RESTART = 1  # SC_ACTION_RESTART

# One calling convention on the 64 bit systems that Windows runs on.
_HANDLER = ctypes.CFUNCTYPE(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p)
_MAIN = ctypes.CFUNCTYPE(None, c_uint32, c_void_p)


class _Status(ctypes.Structure):
    """SERVICE_STATUS."""

    _fields_ = tuple(
        (name, c_uint32)
        for name in ("type", "state", "accepts", "exit_code", "specific_code", "checkpoint", "wait_hint")
    )


class _Entry(ctypes.Structure):
    """SERVICE_TABLE_ENTRYW."""

    _fields_ = (("name", c_wchar_p), ("main", _MAIN))


class _Action(ctypes.Structure):
    """SC_ACTION."""

    _fields_ = (("type", c_int), ("delay", c_uint32))


class _Failure(ctypes.Structure):
    """SERVICE_FAILURE_ACTIONSW."""

    _fields_ = (
        ("reset", c_uint32),
        ("reboot", c_wchar_p),
        ("command", c_wchar_p),
        ("count", c_uint32),
        ("actions", ctypes.POINTER(_Action)),
    )


class _Text(ctypes.Structure):
    """SERVICE_DESCRIPTIONW."""

    _fields_ = (("text", c_wchar_p),)


class _Flag(ctypes.Structure):
    """SERVICE_DELAYED_AUTO_START_INFO, SERVICE_FAILURE_ACTIONS_FLAG."""

    _fields_ = (("on", c_int),)


def _advapi() -> Any:
    lib: Any = getattr(ctypes, "WinDLL")("advapi32", use_last_error=True)  # noqa: B009
    for name in ("OpenSCManagerW", "OpenServiceW", "CreateServiceW", "RegisterServiceCtrlHandlerExW"):
        getattr(lib, name).restype = c_void_p
    lib.OpenSCManagerW.argtypes = [c_wchar_p, c_wchar_p, c_uint32]
    lib.OpenServiceW.argtypes = [c_void_p, c_wchar_p, c_uint32]
    lib.CreateServiceW.argtypes = [
        c_void_p, c_wchar_p, c_wchar_p, c_uint32, c_uint32, c_uint32, c_uint32, c_wchar_p,
        c_wchar_p, c_void_p, c_wchar_p, c_wchar_p, c_wchar_p,
    ]  # fmt: skip
    lib.ChangeServiceConfig2W.argtypes = [c_void_p, c_uint32, c_void_p]
    lib.StartServiceW.argtypes = [c_void_p, c_uint32, c_void_p]
    lib.ControlService.argtypes = [c_void_p, c_uint32, c_void_p]
    lib.QueryServiceStatus.argtypes = [c_void_p, c_void_p]
    lib.SetServiceStatus.argtypes = [c_void_p, c_void_p]
    lib.RegisterServiceCtrlHandlerExW.argtypes = [c_wchar_p, _HANDLER, c_void_p]
    lib.StartServiceCtrlDispatcherW.argtypes = [c_void_p]
    for name in ("DeleteService", "CloseServiceHandle"):
        getattr(lib, name).argtypes = [c_void_p]
    return lib


def _code() -> int:
    return int(getattr(ctypes, "get_last_error")())  # noqa: B009


def error_of(what: str, code: int) -> OverlaceError:
    """The error a failed call of the SCM is, by its Windows code. Pure."""
    if code == _ACCESS_DENIED:
        return PermissionDenied(f"{what}: access denied; run it as an administrator (an elevated prompt)")
    if code == _NO_SUCH:
        return NotFound(f"{NAME} is not installed as a service: overlace service install")
    if code == _EXISTS:
        return Conflict(f"a service {NAME} exists already: overlace service remove, then install it again")
    if code == _MARKED:
        return Conflict(f"the service {NAME} is being removed: close what shows services, then try again")
    return Internal(f"{what}: Windows error {code}")


@contextlib.contextmanager
def _service(lib: Any, access: int) -> Iterator[Any]:
    manager = lib.OpenSCManagerW(None, None, _CONNECT)
    if not manager:
        raise error_of("OpenSCManager", _code())
    try:
        service = lib.OpenServiceW(manager, NAME, access)
        if not service:
            raise error_of("OpenService", _code())
        try:
            yield service
        finally:
            lib.CloseServiceHandle(service)
    finally:
        lib.CloseServiceHandle(manager)


# -- known to the SCM ---------------------------------------------------------------------------------------------


def install(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Make the service, started at boot and after failures; returns what this Windows would not note about it.

    Raises PermissionDenied, Conflict when there is one, Internal.
    """
    lib = _advapi()
    manager = lib.OpenSCManagerW(None, None, _CONNECT | _CREATE)
    if not manager:
        raise error_of("OpenSCManager", _code())
    try:
        service = lib.CreateServiceW(
            manager, NAME, DISPLAY, _ALL_ACCESS, _OWN_PROCESS, _AUTO_START, _ERROR_NORMAL,
            subprocess.list2cmdline(command), None, None, None, None, None,
        )  # fmt: skip
        if not service:
            raise error_of("CreateService", _code())
    finally:
        lib.CloseServiceHandle(manager)
    try:
        return _describe(lib, service, environment)
    finally:
        lib.CloseServiceHandle(service)


def _describe(lib: Any, service: Any, environment: Mapping[str, str]) -> list[str]:
    actions = (_Action * len(RESTARTS))(*[_Action(_RESTART, delay) for delay in RESTARTS])
    failure = _Failure(FORGOTTEN, None, None, len(RESTARTS), actions)
    refused = []
    for what, level, value in (
        ("its description", _CONFIG_DESCRIPTION, _Text(DESCRIPTION)),
        ("a start after the services of Windows itself", _CONFIG_DELAYED, _Flag(1)),
        ("restarts after a failure", _CONFIG_FAILURE, failure),
        ("restarts after an exit with an error", _CONFIG_FAILURE_FLAG, _Flag(1)),
    ):
        if not lib.ChangeServiceConfig2W(service, level, ctypes.byref(value)):
            refused.append(f"{what} (Windows error {_code()})")
    if environment:
        winreg = importlib.import_module("winreg")
        path = rf"SYSTEM\CurrentControlSet\Services\{NAME}"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path, 0, winreg.KEY_SET_VALUE) as key:
            lines = [f"{name}={value}" for name, value in sorted(environment.items())]
            winreg.SetValueEx(key, "Environment", 0, winreg.REG_MULTI_SZ, lines)
    return refused


def remove() -> None:
    """Stop the service and take it out of the SCM; containers go on. Raises NotFound, PermissionDenied, Internal."""
    lib = _advapi()
    with _service(lib, _DELETE | _STOP | _QUERY) as service:
        _stop(lib, service)
        if not lib.DeleteService(service):
            raise error_of("DeleteService", _code())


def start() -> None:
    """Start it and wait until it runs. Raises NotFound, PermissionDenied, Internal, Unavailable when it does not."""
    lib = _advapi()
    with _service(lib, _START | _QUERY) as service:
        if not lib.StartServiceW(service, 0, None) and _code() != _ALREADY_RUNS:
            raise error_of("StartService", _code())
        _wait(lib, service, RUNNING, START_SECONDS)


def stop() -> None:
    """Stop it and wait until it has; containers and traffic go on. Raises as `start`."""
    lib = _advapi()
    with _service(lib, _STOP | _QUERY) as service:
        _stop(lib, service)


def _stop(lib: Any, service: Any) -> None:
    if not lib.ControlService(service, _CONTROL_STOP, ctypes.byref(_Status())):
        if _code() == _NOT_ACTIVE:
            return
        raise error_of("ControlService", _code())
    _wait(lib, service, STOPPED, STOP_SECONDS)


def _wait(lib: Any, service: Any, wanted: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    status = _Status()
    while True:
        if not lib.QueryServiceStatus(service, ctypes.byref(status)):
            raise error_of("QueryServiceStatus", _code())
        if status.state == wanted:
            return
        if wanted == RUNNING and status.state == STOPPED:
            raise Unavailable(
                f"the service ended at once (Windows error {status.exit_code}, {status.specific_code}): see its log"
            )
        if time.monotonic() > deadline:
            raise Unavailable(f"the service is in state {status.state} after {seconds:g} s: see its log")
        time.sleep(0.1)


# -- run by the SCM -----------------------------------------------------------------------------------------------


class Running:
    """This process as the service, from the SCM's call to the end of `main`, which runs on a thread of the SCM's."""

    def __init__(self, main: Callable[[], None]) -> None:
        self._main = main
        self._lib: Any = _advapi()
        self._handle: Any = None
        self._ended = threading.Event()
        self._status = _Status(type=_OWN_PROCESS)
        self._handler = _HANDLER(self._control)  # kept: the SCM calls it
        self._entry = _MAIN(self._service_main)
        self.failed = False

    def run(self) -> None:
        """Until the service has stopped. Raises Unavailable when it is not the SCM that started this process."""
        table = (_Entry * 2)(_Entry(NAME, self._entry))
        if not self._lib.StartServiceCtrlDispatcherW(ctypes.byref(table)):
            if _code() == _NOT_A_SERVICE:
                raise Unavailable("this is the service manager's own command: use `overlace service start`")
            raise error_of("StartServiceCtrlDispatcher", _code())

    def _tell(self, state: int, wait_seconds: float = 0) -> None:
        self._status.state = state
        self._status.accepts = _ACCEPTS if state == RUNNING else 0
        self._status.checkpoint = 0 if state in (RUNNING, STOPPED) else self._status.checkpoint + 1
        self._status.wait_hint = int(wait_seconds * 1000)
        self._lib.SetServiceStatus(self._handle, ctypes.byref(self._status))

    def _service_main(self, count: int, words: object) -> None:
        self._handle = self._lib.RegisterServiceCtrlHandlerExW(NAME, self._handler, None)
        self._tell(START_PENDING, START_SECONDS)
        self._tell(RUNNING)
        try:
            self._main()
        except OverlaceError as error:
            self.failed = True
            print(f"overlace: {error.message}", file=sys.stderr)
        except BaseException:
            self.failed = True
            traceback.print_exc()
        self._ended.set()
        if self.failed:  # a restart is due, see RESTARTS
            self._status.exit_code, self._status.specific_code = _SPECIFIC, 1
        self._tell(STOPPED)

    def _control(self, control: int, kind: int, data: object, context: object) -> int:
        if control in (_CONTROL_STOP, _CONTROL_SHUTDOWN):
            self._tell(STOP_PENDING, STOP_SECONDS)
            threading.Thread(target=self._ask, name="stop", daemon=True).start()
            return 0
        return 0 if control == _CONTROL_INTERROGATE else _NOT_IMPLEMENTED

    def _ask(self) -> None:
        while not windows.ask_to_stop(os.getpid()) and not self._ended.wait(0.1):
            pass  # asked before it listens
