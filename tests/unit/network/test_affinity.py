"""The backend of a client that has none yet: the same from every host, and few move when the list changes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from overlace.network.vfp.affinity import preferred
from overlace.network.vfp.tables import Backend

_backends = st.lists(
    st.builds(Backend, st.just(4097), st.ip_addresses(v=4).map(str), st.sampled_from([0, 80])),
    min_size=1, max_size=12, unique_by=lambda b: b.address,
)  # fmt: skip
_client = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(_backends, _client, st.randoms())
def test_the_order_of_the_list_says_nothing(backends: list[Backend], client: str, random: object) -> None:
    mine = preferred(backends, client)
    random.shuffle(backends)  # type: ignore[attr-defined]
    assert preferred(backends, client) == mine


@given(_backends, _client)
def test_only_the_clients_of_a_backend_that_goes_move(backends: list[Backend], client: str) -> None:
    mine = preferred(backends, client)
    for gone in backends:
        rest = [b for b in backends if b != gone]
        if rest and gone != mine:
            assert preferred(rest, client) == mine


def test_clients_spread_over_all_backends() -> None:
    backends = [Backend(4097, f"10.0.1.{n}", 80) for n in range(3, 8)]
    seen = Counter(preferred(backends, f"192.0.2.{n}").address for n in range(250))
    assert len(seen) == 5 and min(seen.values()) > 25, seen
