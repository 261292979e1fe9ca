"""From documents to tables: what several documents make, and that what HNS takes fits the tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlace.network.hns import policies as p
from overlace.network.hns.acl import MAX_RULES, check_acls
from overlace.network.hns.documents import HostComputeEndpoint, HostComputeNetwork, IpConfiguration
from overlace.network.hns.errors import HcnError
from overlace.network.hns.state import State
from overlace.network.linux.maps import ACCESS_RULES, encode
from overlace.network.vfp import access, compile
from overlace.network.vfp.compile import Compiler, compile_access, compile_all
from overlace.network.vfp.tables import Backend, Delta, Entry, Frontend, Tables


class Doc:
    """Something that makes entries; several may make the same one, whatever HNS takes."""

    def __init__(self, id: str, ports: list[int]) -> None:
        self.id = id
        self.entries = [
            Frontend(0, "172.28.1.11", 6, port, (Backend(4097, f"10.0.1.{ord(id)}"),)) for port in ports
        ]


_steps = st.lists(
    st.dictionaries(
        st.sampled_from("abc"),
        st.one_of(st.none(), st.lists(st.sampled_from([80, 443]), unique=True)),
        min_size=1,
    ),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_steps)
def test_an_entry_stays_as_long_as_a_document_makes_it(
    monkeypatch: pytest.MonkeyPatch, steps: list[dict[str, list[int] | None]]
) -> None:
    """Whichever of them goes first, and whatever the order in which they came."""

    def made(d: Doc, *_: object) -> list[Entry]:
        return [*d.entries]

    monkeypatch.setattr(compile, "compile_document", made)
    state: Any = State()
    compiler, data_path = Compiler(state, "172.28.1.11"), Tables()
    for step in steps:
        for id, ports in step.items():
            state.documents.pop(id, None)
            if ports is not None:
                state.documents[id] = Doc(id, ports)
        delta: Delta = compiler.update(step)
        data_path.apply(delta)
        assert set(data_path) == set(compiler.tables) == set(compile_all(state, "172.28.1.11"))


def _acls(count: int, kind: str, ports: int) -> tuple[p.Acl, ...]:
    listed = ",".join(str(n + 1) for n in range(ports))
    one = dict(protocols="6", action="Block", direction="In", rule_type=kind, local_ports=listed)
    return tuple(p.Acl(p.AclSettings(priority=n + 1, **one)) for n in range(count))


@pytest.mark.parametrize("kind", ["Switch", "Host"])
@pytest.mark.parametrize(
    ("count", "ports"), [(MAX_RULES - 1, 1), (MAX_RULES, 1), (MAX_RULES // 2, 2), (MAX_RULES + 1, 1)]
)
def test_what_hns_takes_fits_the_tables(kind: str, count: int, ports: int) -> None:
    """Rules of type Host leave open what they do not block, which is one rule more."""
    acls = _acls(count, kind, ports)
    network = HostComputeNetwork(name="n")
    endpoint = HostComputeEndpoint(name="e", policies=acls, ip_configurations=(IpConfiguration("10.0.1.2"),))
    lists = compile_access(endpoint, network, 4097, "10.0.1.2")
    fits = all(len(each.rules) <= ACCESS_RULES for each in lists)
    try:
        check_acls(acls, {})
    except HcnError as e:
        assert not fits and f"{MAX_RULES} are possible" in str(e)
    else:
        assert fits
        for each in lists:
            assert encode(each, {})


def test_the_same_limit_everywhere() -> None:
    assert MAX_RULES == ACCESS_RULES == access.NO_RULE
