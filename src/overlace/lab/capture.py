"""Capturing VXLAN packets on a lab's underlay with tcpdump.

Owns the tcpdump process. What the packets say is read in vxlan.py.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from overlace.lab.lab import Lab
from overlace.lab.netns import BRIDGE
from overlace.lab.shell import tail
from overlace.lab.vxlan import Packet, read_packets
from overlace.model.errors import Internal
from overlace.model.objects import VXLAN_PORT


class Capture:
    """VXLAN packets on the lab's underlay, from construction until `stop`.

    The bridge hands every forwarded frame to a listener in promiscuous mode once, so that one capture sees
    each packet once.
    """

    def __init__(self, lab: Lab, file: Path) -> None:
        self._file = file
        self._log = file.with_suffix(".log")
        words = ["tcpdump", "-i", BRIDGE, "-n", "-U", "--immediate-mode", "-Z", "root", "-w", str(file)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                lab.command("switch", [*words, "udp", "port", str(VXLAN_PORT)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 10
        while "listening on" not in self._log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise Internal(f"tcpdump does not listen:\n{tail(self._log)}")
            time.sleep(0.02)

    def stop(self) -> list[Packet]:
        """End the capture and return its packets."""
        time.sleep(0.3)  # the last acknowledgements of closing connections
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return read_packets(self._file.read_bytes())
