"""Which of a host's routes stand in the way of its own access, and which interfaces are ours."""

from __future__ import annotations

from pathlib import Path

from overlace.network.linux import host_access
from overlace.network.linux.netlink import Link, Route

GUID = "6F7665726C61-1"


def link(name: str, alias: str = "", kind: str = "veth") -> Link:
    return Link(9, name, 1450, "02:00:00:00:00:01", alias, True, kind)


def test_any_route_of_the_hosts_own_that_overlaps_is_told() -> None:
    def why(*routes: Route, subnets: tuple[str, ...] = ("10.0.1.0/24", "10.0.9.0/24")) -> str:
        return host_access.conflict(subnets, routes, 7)

    assert why() == ""
    assert why(Route(2, "0.0.0.0", 0, False), Route(2, "172.28.1.0", 24, False)) == ""
    assert why(Route(7, "10.0.1.0", 24, True)) == "", "its own from before"
    assert why(Route(5, "10.0.1.11", 32, True)) == "", "to a container of this host"
    for destination, prefix in (("10.0.0.0", 8), ("10.0.9.0", 24), ("10.0.9.128", 25)):
        assert f"10.0.9.0/24 overlaps the host's own route to {destination}/{prefix}" in why(
            Route(2, destination, prefix, False), subnets=("10.0.9.0/24",)
        )
    assert why(Route(0, "10.0.1.0", 24, False)), "several next hops, or a blackhole"


def test_only_this_instances_interfaces_are_ours_and_a_crashs_leftovers() -> None:
    name = host_access.link_name(GUID)
    assert host_access.ours([link(name, host_access.alias_of("one", GUID))], "one").keys() == {GUID}
    for other in (
        link(name, host_access.alias_of("two", GUID)),
        link(name, "a person's"),
        link("ohmylink"),
        link(name, kind="bridge"),
        link("oh00000000", host_access.alias_of("one", GUID)),
    ):
        assert host_access.ours([other], "one") == {}
    assert host_access.ours([link(name)], "one").keys() == {name}


def test_what_is_there_and_not_wanted_is_found_by_file_or_link(tmp_path: Path) -> None:
    for file in ("host-GONE", "host-KEPT", "task1"):
        (tmp_path / file).touch()
    links = [link(host_access.link_name(GUID), host_access.alias_of("one", GUID))]
    assert host_access.stray(tmp_path, links, "one", {"KEPT"}) == {"GONE", GUID}
    assert host_access.stray(tmp_path / "none", [], "one", set()) == set()
