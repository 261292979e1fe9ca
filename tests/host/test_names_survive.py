"""Names are answered while the daemon is killed, started again and upgraded: a container that asks all the time always
gets its answer. Its resolver is a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest
from datapath_bed import run
from driver_bed import BACK, DriverBed, DriverHost, resolve
from test_driver import eventually, shop

import overlace
from overlace.network.linux.netns import run_inside
from overlace.network.linux.resolver.channel import connect

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def bed() -> Iterator[DriverBed]:
    made = DriverBed()
    try:
        yield made
    finally:
        made.remove()


def resolver_of(host: DriverHost) -> int:
    """Its process; 0 when there is none."""
    try:
        with connect(host.exec_dir) as connection:
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return 0
    return int(struct.unpack("iII", found)[0])


def is_answered(sandbox: Path) -> bool:
    try:
        return resolve(sandbox, "web") == ("NOERROR", ["10.0.1.100"])
    except OSError:
        return False


class Asking:
    """Asks for a name over and over, over UDP and now and then over TCP; keeps what was no right answer."""

    def __init__(self, sandbox: Path, name: str, expected: str) -> None:
        self.sandbox, self.expected = sandbox, expected
        self.count = 0
        self.failed: list[str] = []
        self._query = dns.message.make_query(name, "A")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._end.is_set():
            try:
                data = run_inside(self.sandbox, self._tcp if self.count % 8 == 7 else self._udp)
                answer = dns.message.from_wire(data)
                said = " ".join(record.to_text() for found in answer.answer for record in found)
            except OSError as e:
                said = repr(e)
            if said != self.expected:
                self.failed.append(said)
            self.count += 1

    def _udp(self) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(5)  # as long as a resolver library waits
            made.connect(("127.0.0.11", 53))
            made.send(self._query.to_wire())
            return made.recv(4096)

    def _tcp(self) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
            made.settimeout(5)
            made.connect(("127.0.0.11", 53))
            wire = self._query.to_wire()
            made.sendall(struct.pack(">H", len(wire)) + wire)
            (length,) = struct.unpack(">H", made.recv(2))
            return made.recv(length)

    def enough(self, more: int = 40) -> None:
        want = self.count + more
        eventually(lambda: self.count >= want or self.failed, 30)

    def finish(self) -> list[str]:
        self._end.set()
        self._thread.join()
        return self.failed


def other_version(folder: Path) -> Path:
    """The program's sources with one line more, where the resolver's are."""
    shutil.copytree(
        Path(overlace.__file__).parent, folder / "overlace", ignore=shutil.ignore_patterns("__pycache__")
    )
    with open(folder / "overlace/network/names.py", "a") as source:
        source.write("\n# of the next version\n")
    return folder


def test_no_question_is_lost(bed: DriverBed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = shop(bed)
    one = s.one
    entries = tuple(bed.entries.values())
    asking = Asking(s.a.sandbox, "web", "10.0.1.100")
    first = resolver_of(one)
    try:
        one.kill()
        asking.enough()
        assert resolve(s.a.sandbox, "tasks.web") == ("NOERROR", ["10.0.1.11", "10.0.1.12"])
        one.start()
        asking.enough()
        one.call("change", entries, ())
        assert resolver_of(one) == first, "the one that runs is adopted"
        for _ in range(2):  # in order, too
            one.call("close")
            one.kill()
            one.start()
            one.call("change", entries, ())
        assert resolver_of(one) == first
        one.sources = other_version(tmp_path)
        one.kill()
        one.start()
        one.call("change", entries, ())
        second = resolver_of(one)
        assert second not in (0, first), "another version takes over"
        eventually(lambda: not Path(f"/proc/{first}").exists(), 20)
        asking.enough()
        # what the new one knows is true
        bed.change(remove=("service/backid/db",))
        assert resolve(s.a.sandbox, "db")[0] == "NXDOMAIN", "told before the change is over"
        one.sources = None  # and back
        one.kill()
        one.start()
        one.call("change", entries, ())
        asking.enough()
        assert resolver_of(one) not in (0, first, second)
    finally:
        failed = asking.finish()
    with capsys.disabled():
        print(f"\n{len(failed)} of {asking.count} lookups failed")
    assert not failed


def test_a_resolver_that_dies_is_started_again(bed: DriverBed) -> None:
    s = shop(bed)
    first = resolver_of(s.one)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: resolver_of(s.one) not in (0, first), 30)
    eventually(lambda: is_answered(s.a.sandbox), 30)
    # also when nobody was there to see it
    second = resolver_of(s.one)
    s.one.kill()
    os.kill(second, signal.SIGKILL)
    s.one.start()
    s.one.call("change", tuple(bed.entries.values()), ())
    eventually(lambda: is_answered(s.a.sandbox), 30)


def test_a_resolver_that_hangs_is_replaced(bed: DriverBed) -> None:
    """Not dead, and nothing to tell it: it is noticed all the same."""
    s = shop(bed)
    hanging = resolver_of(s.one)
    os.kill(hanging, signal.SIGSTOP)
    assert not is_answered(s.a.sandbox)
    eventually(lambda: is_answered(s.a.sandbox), 30)
    assert resolver_of(s.one) not in (0, hanging)


def test_one_process_a_host_which_ends_with_its_membership(bed: DriverBed) -> None:
    s = shop(bed)
    pid = resolver_of(s.one)
    c = bed.run(s.one, "tc", (BACK, "10.0.1.20"))
    assert resolver_of(s.one) == pid
    assert resolve(c.sandbox, "web", tcp=True) == ("NOERROR", ["10.0.1.100"])
    s.one.call("detach", "tc")
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert sum(name.startswith("net:") or "/netns" in name for name in held) == 1, "what is gone is let go of"
    s.one.call("leave")
    assert resolver_of(s.one) == 0
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    s.one.kill()
    assert "overlace_dns" not in run("ip", "netns", "exec", s.one.ns, "nft", "list", "ruleset")


def test_a_sandbox_made_anew_is_answered(bed: DriverBed) -> None:
    """A reboot, or a runtime that made another one: the sockets of before are in a namespace nobody uses."""
    s = shop(bed)
    s.one.kill()
    run("umount", "--lazy", str(s.a.sandbox))
    s.a.sandbox.unlink()
    s.one.start()
    s.one.call("change", tuple(bed.entries.values()), ())
    again = bed.run(s.one, "ta", (BACK, "10.0.1.11"), service="web")
    eventually(lambda: is_answered(again.sandbox), 30)
