"""What a name means to the task that asks."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from overlace.model.netview import NetView
from overlace.network.names import EMPTY, UNKNOWN, Answer, Names, lookup

from .test_vfp import NETS, THIRD
from .world import ME, endpoint, network, service


def names_of(*entries: object) -> Names:
    names = Names()
    names.update(NetView(entries), None)  # type: ignore[arg-type]
    return names


BACK, FRONT = network("back", 4097, 1), network("front", 4098, 2)
SHOP = (
    BACK,
    FRONT,
    network("ingress", 4096, 0, ingress=True),
    service("shop_web", "back", "10.0.1.5", aliases=("web",)),
    service("shop_web", "front", "10.0.2.5", aliases=("www",)),
    service("shop_web", "ingress", "10.0.0.5"),
    service("shop_db", "back", "", aliases=("db",)),
    endpoint("t1", "back", ME, "10.0.1.7", "shop_web", aliases=("web", "box1")),
    endpoint("t2", "back", ME, "10.0.1.8", "shop_web", aliases=("web",), serving=False),
    endpoint("d1", "back", ME, "10.0.1.9", "shop_db"),
    endpoint("d2", "back", ME, "10.0.1.10", "shop_db"),
    endpoint("d3", "back", ME, "10.0.1.11", "shop_db", serving=False),
)


def test_what_names_mean() -> None:
    n = names_of(*SHOP)

    def ask(name: str, kind: str = "A", networks: tuple[str, ...] = ("back",)) -> Answer:
        return lookup(n, networks, name, kind)

    assert ask("shop_web").addresses == ask("WEB").addresses == ("10.0.1.5",)
    assert ask("shop_web.back").addresses == ("10.0.1.5",)
    assert ask("shop_web.front") == UNKNOWN  # not shared
    assert ask("www", networks=("back", "front")).addresses == ("10.0.2.5",)
    assert ask("shop_web", networks=("front", "back")).addresses == ("10.0.2.5",)  # first interface first
    assert ask("shop_web.back", networks=("front", "back")).addresses == ("10.0.1.5",)
    assert set(ask("db").addresses) == {"10.0.1.9", "10.0.1.10"}  # dnsrr
    assert ask("tasks.db").addresses == ask("db").addresses
    assert ask("tasks.web").addresses == ask("tasks.shop_web").addresses == ("10.0.1.7",)
    assert ask("shop_web.1.t2").addresses == ("10.0.1.8",)  # its own name, before it takes connections
    assert ask("box1").addresses == ("10.0.1.7",)
    assert ask("web", "AAAA") == ask("web", "SRV") == EMPTY
    assert ask("nosuch") == ask("tasks.nosuch") == ask("example.org") == UNKNOWN
    assert ask("shop_web", networks=("ingress",)) == UNKNOWN
    assert ask("shop_web", networks=()) == UNKNOWN


def test_a_family_in_which_no_task_can_answer_has_no_vip() -> None:
    web = msgspec.structs.replace(service("web", "back", "10.0.1.5"), vip6="fd00::5")
    four = endpoint("t1", "back", ME, "10.0.1.7", "web")  # on a Windows host
    six = msgspec.structs.replace(endpoint("t2", "back", ME, "10.0.1.8", "web"), address6="fd00::8")
    for tasks, vips in (
        ((), ("fd00::5",)),
        ((four,), ()),
        ((four, six), ("fd00::5",)),
        ((four, msgspec.structs.replace(six, serving=False)), ()),
    ):
        n = names_of(BACK, web, *tasks)
        assert lookup(n, ("back",), "web", "AAAA") == Answer(True, vips), tasks
        assert lookup(n, ("back",), "web", "A").addresses == ("10.0.1.5",)


def test_addresses_have_names_too() -> None:
    n = names_of(*SHOP)
    assert lookup(n, ("back",), "7.1.0.10.in-addr.arpa", "PTR").names == ("shop_web.1.t1.back",)
    assert lookup(n, ("back",), "5.1.0.10.in-addr.arpa", "PTR").names == ("shop_web.back",)
    assert lookup(n, ("back",), "99.1.0.10.in-addr.arpa", "PTR") == EMPTY  # ours, but nobody's
    assert lookup(n, ("back",), "1.0.2.192.in-addr.arpa", "PTR") == UNKNOWN
    assert lookup(n, ("back",), "x.y.in-addr.arpa", "PTR") == UNKNOWN


def test_a_service_without_ready_tasks_exists_and_is_empty() -> None:
    n = names_of(BACK, service("db", "back", ""), endpoint("d1", "back", ME, "10.0.1.9", "db", serving=False))
    assert lookup(n, ("back",), "db", "A") == EMPTY
    assert lookup(n, ("back",), "tasks.db", "A") == EMPTY


def test_changes_say_which_networks_they_touch() -> None:
    view = NetView(SHOP)
    n = Names()
    n.update(view, None)
    view.put(endpoint("t2", "back", ME, "10.0.1.8", "shop_web", aliases=("web",)))
    assert n.update(view, {"endpoint/back/t2"}) == {"back"}
    assert set(lookup(n, ("back",), "tasks.web", "A").addresses) == {"10.0.1.7", "10.0.1.8"}
    assert n.update(view, {"endpoint/back/t2"}) == set()


change = st.one_of(
    st.tuples(
        st.just("endpoint"),
        st.sampled_from(["back", "hidden"]),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
        st.booleans(),
        st.sampled_from([(), ("x",), ("a", "x")]),
    ),
    st.tuples(st.just("no endpoint"), st.sampled_from(["back", "hidden"]), st.integers(0, 3)),
    st.tuples(st.just("service"), st.sampled_from(["a", "b"]), st.booleans(), st.sampled_from([(), ("x",)])),
    st.tuples(st.just("no service"), st.sampled_from(["a", "b"])),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(change, max_size=20))
def test_followed_or_read_anew_names_mean_the_same(changes: list) -> None:  # type: ignore[type-arg]
    view = NetView(NETS)
    n = Names()
    n.update(view, None)
    for c in changes:
        match c:
            case "endpoint", net, slot, svc, serving, aliases:
                e = endpoint(
                    f"t{slot}", net, ME, f"10.0.{THIRD[net]}.{slot}", svc, serving=serving, aliases=aliases
                )
                view.put(e)
                n.update(view, {e.key})
            case "no endpoint", net, slot:
                view.remove(f"endpoint/{net}/t{slot}")
                n.update(view, {f"endpoint/{net}/t{slot}"})
            case "service", svc, vip, aliases:
                s = service(svc, "back", "10.0.1.100" if vip else "", aliases=aliases)
                view.put(s)
                n.update(view, {s.key})
            case "no service", svc:
                view.remove(f"service/back/{svc}")
                n.update(view, {f"service/back/{svc}"})
    fresh = Names()
    fresh.update(view, None)
    for name in ("a", "b", "x", "tasks.a", "tasks.x", "a.1.t0", "b.1.t1", "a.back", "0.1.0.10.in-addr.arpa"):
        kind = "PTR" if name.endswith("arpa") else "A"
        for networks in (("back",), ("hidden", "back")):
            x, y = lookup(n, networks, name, kind), lookup(fresh, networks, name, kind)
            assert (x.known, set(x.addresses), set(x.names)) == (y.known, set(y.addresses), set(y.names)), (
                name
            )
