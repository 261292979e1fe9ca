"""Asks a daemon on Windows to stop: `python stop.py PID`, run by a Windows Python beside it.

Owns setting the event that daemon/windows.py waits for. Imports nothing of ours: it is run for this alone.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

EVENT_MODIFY_STATE = 2


def main() -> int:
    """0 when it was asked, 1 when there is no such daemon."""
    loader: Any = getattr(ctypes, "WinDLL")  # noqa: B009  the type checker knows Linux' ctypes alone
    kernel = loader("kernel32")
    kernel.OpenEventW.argtypes = [ctypes.c_uint32, ctypes.c_int, ctypes.c_wchar_p]
    kernel.OpenEventW.restype = ctypes.c_void_p
    kernel.SetEvent.argtypes = [ctypes.c_void_p]
    event = kernel.OpenEventW(EVENT_MODIFY_STATE, 0, rf"Global\overlace-daemon-stop-{int(sys.argv[1])}")
    return 0 if event and kernel.SetEvent(event) else 1


if __name__ == "__main__":
    raise SystemExit(main())
