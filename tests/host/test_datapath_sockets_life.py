"""Services at the socket level across daemons that die, change and are told otherwise: connections go on, new begin."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from datapath_bed import connect, echo, line
from datapath_pair import desired, made_pair, stamp

from overlace.network.balancing import Balancing
from overlace.network.linux import bpf_syscall
from overlace.network.linux.loader import BPFFS, LoadError
from overlace.network.vfp.tables import Backend, Delta, Frontend

pytestmark = [pytest.mark.host, pytest.mark.timeout(90)]
VIP = Frontend(4097, "10.0.1.2", 6, 8080, (Backend(4097, "10.0.1.6", 80),))
ASKED = ("10.0.1.2", 8080)
# What a kernel says that has as many programs at this cgroup as it takes.
REFUSING = """
import errno, runpy, sys
from overlace.network.linux import bpf_syscall
def refuse(*_):
    raise OSError(errno.E2BIG, "Argument list too long")
bpf_syscall.create_cgroup_link = refuse
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def world() -> Iterator[SimpleNamespace]:
    with made_pair(VIP) as made:
        yield made


def links(world: SimpleNamespace) -> set[str]:
    names = os.listdir(BPFFS / "overlace" / world.a.instance / "links")
    return {name for name in names if name.startswith("socket-")}


def is_translated(world: SimpleNamespace, port: int) -> bool:
    return any(f.came != f.went for f in world.a.call("flows") if port in (f.came.sport, f.came.dport))


def test_daemons_come_and_go(world: SimpleNamespace) -> None:
    kept = links(world)
    assert len(kept) == 6

    def begin(asked: tuple[str, int] = ASKED) -> None:
        connection = connect(world.one.path, *ASKED)
        open_now.append(connection)
        assert line(connection)[0] == "two" and connection.getpeername() == asked
        for each in open_now:
            assert echo(each, b"goes on") and each.getpeername() == asked

    open_now: list[socket.socket] = []
    try:
        begin()
        world.a.kill()
        begin()  # without a daemon
        world.a.start()
        assert world.a.call("reconcile", desired(world)) == Delta()
        begin()  # adopted
        world.a.kill()
        stamp(world, 1, 0)  # other programs
        world.a.start()
        begin()
        world.a.kill()
        stamp(world, 0, 999)  # another layout
        world.a.start()
        begin()  # by the old ones still
        world.a.call("reconcile", desired(world))
        begin()
        assert links(world) == kept
        port = open_now[-1].getsockname()[1]
        assert {f.service for f in world.a.call("flows") if f.came.sport == port} == {"10.0.1.2:8080"}
    finally:
        for each in open_now:
            each.close()


def test_a_link_taken_away_comes_back_and_a_strange_one_goes(world: SimpleNamespace) -> None:
    folder = BPFFS / "overlace" / world.a.instance / "links"
    kept = links(world)
    fd = bpf_syscall.get_pinned(folder / "socket-connect4")
    bpf_syscall.pin(fd, folder / "socket-earlier")
    os.close(fd)
    (folder / "socket-peer6").unlink()
    world.a.call("reconcile", desired(world))
    assert links(world) == kept
    world.a.call("reconcile", desired(world))
    with connect(world.one.path, *ASKED) as connection:
        assert line(connection)[0] == "two"
        assert not is_translated(world, connection.getsockname()[1])


def test_told_to_leave_it_to_the_packet_level(world: SimpleNamespace) -> None:
    with connect(world.one.path, *ASKED) as before:
        line(before)
        world.a.kill()
        world.a.start(balancing="packet")
        assert links(world) == set()
        assert world.a.call("balancing") == Balancing("packet", "as the daemon was told")
        assert echo(before, b"goes on")
        with connect(world.one.path, *ASKED) as after:
            assert line(after)[0] == "two" and after.getpeername() == ASKED
            assert is_translated(world, after.getsockname()[1])
            world.a.kill()
            world.a.start(balancing="socket")
            assert len(links(world)) == 6
            assert echo(before, b"goes on") and echo(after, b"goes on")
            assert before.getpeername() == ASKED


def test_a_cgroup_that_takes_no_more_programs(world: SimpleNamespace) -> None:
    world.a.kill()
    for name in links(world):
        (BPFFS / "overlace" / world.a.instance / "links" / name).unlink()
    world.a.start(wrapper=REFUSING)
    level = world.a.call("balancing")
    assert level.level == "packet" and "takes no programs: Argument list too long" in level.words
    assert links(world) == set()
    with connect(world.one.path, *ASKED) as connection:
        assert line(connection)[0] == "two" and connection.getpeername() == ASKED
        assert is_translated(world, connection.getsockname()[1])
    world.a.kill()
    with pytest.raises(LoadError, match="cannot be balanced at the socket level"):
        world.a.start(wrapper=REFUSING, balancing="socket")
