"""What a lab is laid out as: names, addresses, roles, and refusals a person can act on."""

from __future__ import annotations

from typing import Any

import pytest

from overlace.lab.layout import LabPlan, Paths, check_name, plan_lab, plan_number
from overlace.model.errors import InvalidArgument


def plan(name: str = "lab", number: int = 3, **counts: Any) -> LabPlan:
    return plan_lab(name, number, paths=Paths(), **{"linux": 2, "windows": 1, "managers": 1} | counts)


def test_hosts_have_the_names_roles_and_addresses_people_type() -> None:
    rows = [(host.name, host.os, host.role, host.address, host.emulated) for host in plan().hosts]
    assert rows == [
        ("linux-1", "linux", "manager", "172.28.3.11", False),
        ("linux-2", "linux", "worker", "172.28.3.12", False),
        ("windows-1", "windows", "worker", "172.28.3.13", True),
        ("client", "linux", "client", "172.28.3.200", False),
    ]


def test_hosts_with_a_windows_python_come_after_the_emulated_ones() -> None:
    rows = [
        (host.name, host.os, host.role, host.emulated, host.windows_python)
        for host in plan(linux=1, windows=1, windows_python=2).hosts
    ]
    assert rows == [
        ("linux-1", "linux", "manager", False, False),
        ("windows-1", "windows", "worker", True, False),
        ("windows-2", "windows", "worker", False, True),
        ("windows-3", "windows", "worker", False, True),
        ("client", "linux", "client", False, False),
    ]
    assert plan(windows=0, windows_python=1, runtime="docker").host("windows-1").runtime == "oci"


def test_client_has_no_daemon() -> None:
    assert plan().host("client").docker_host is None
    assert plan().host("linux-1").docker_host == "unix:///run/overlace/labs/lab/linux-1/docker.sock"


def test_the_biggest_lab_has_no_address_twice() -> None:
    big = plan(linux=60, windows=40)
    fixed = [big.gateway, big.registry_address, big.shell_address]
    addresses = [host.address for host in big.hosts] + fixed
    assert len(set(addresses)) == len(addresses)


def test_two_labs_share_nothing() -> None:
    one, two = plan("one", 1), plan("two", 2)
    assert not set(one.netns) & set(two.netns)
    assert one.shell_link != two.shell_link
    assert not {host.instance for host in one.hosts if host.data_root} & {
        host.instance for host in two.hosts if host.data_root
    }


def test_the_longest_name_leaves_room_for_a_socket_path() -> None:
    longest = plan(check_name("a" * 16), linux=100, windows=0)
    assert all(len(host.socket) <= 80 for host in longest.hosts)  # of 107: shims put sockets below, too


@pytest.mark.parametrize("name", ["", "Lab", "-lab", "lab-", "a" * 17, "a/b", "a b", "."])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid lab name"):
        check_name(name)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"managers": 3}, "--linux 3 or more"),
        ({"managers": 0}, "at least one: use 1"),
        ({"linux": 0}, "use --linux 1 or more"),
        ({"linux": -1}, "--linux is -1"),
        ({"windows": -2}, "--windows is -2"),
        ({"windows_python": -1}, "--windows-python is -1"),
        ({"linux": 60, "windows": 20, "windows_python": 21}, "between 1 and 100"),
        ({"linux": 101, "windows": 0}, "between 1 and 100"),
    ],
)
def test_counts_that_cannot_work_are_refused_with_a_remedy(counts: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        plan(**counts)


def test_unknown_host_names_those_there_are() -> None:
    with pytest.raises(InvalidArgument, match="linux-1, linux-2, windows-1, client"):
        plan().host("linux-9")


def test_numbers_are_the_lowest_free_one() -> None:
    assert plan_number(()) == 1
    assert plan_number({1, 2, 4}) == 3
    with pytest.raises(InvalidArgument, match="in use"):
        plan_number(range(1, 251))
