"""docker swarm init, join and leave: defaults, and refusals in Docker's words."""

from __future__ import annotations

from typing import Any

import pytest

from overlace.api.backend import InitRequest, JoinRequest, LocalSwarm
from overlace.api.swarm_requests import check_init, check_join, check_leave, complete_spec, explain_no_manager
from overlace.model.errors import InvalidArgument, OverlaceError, Unavailable, Unimplemented
from overlace.model.specs import CAConfig, EncryptionConfig, RaftConfig, SwarmSpec

OUT = LocalSwarm()
MANAGER = LocalSwarm(state="active", node_id="n", control_available=True)
WORKER = LocalSwarm(state="active", node_id="n")
TOKEN = "SWMTKN-1-" + "a" * 50 + "-" + "b" * 25
INTERFACES = {"eth0": "172.28.1.11"}


def init(**given: Any) -> InitRequest:
    return check_init(InitRequest(**({"listen_addr": "0.0.0.0:2377"} | given)), OUT, INTERFACES)


def join(**given: Any) -> JoinRequest:
    values = {"listen_addr": "0.0.0.0:2377", "remote_addrs": ["172.28.1.11:2377"], "join_token": TOKEN}
    return check_join(JoinRequest(**(values | given)), OUT, INTERFACES)


def test_init_fills_in_what_was_not_said() -> None:
    # what docker swarm init sends: zeros for everything
    request = init(
        spec=SwarmSpec(
            raft=RaftConfig(election_tick=0, heartbeat_tick=0), ca_config=CAConfig(node_cert_expiry=0)
        )
    )
    assert request.spec == SwarmSpec()
    assert (request.data_path_port, request.subnet_size, request.availability) == (4789, 24, "active")
    assert request.advertise_addr == "" and request.data_path_addr == ""


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("172.28.1.11", "172.28.1.11:2377"),
        ("172.28.1.11:4000", "172.28.1.11:4000"),
        ("eth0", "172.28.1.11:2377"),
        ("eth0:4000", "172.28.1.11:4000"),
        ("fd00::1", "[fd00::1]:2377"),
        ("[fd00::1]:99", "[fd00::1]:99"),
    ],
)
def test_advertised_addresses(given: str, address: str) -> None:
    assert init(advertise_addr=given).advertise_addr == address


def test_who_advertises_ipv6_listens_for_it() -> None:
    for ask in (init, join):
        six = ask(advertise_addr="FD00:0::1", data_path_addr="172.28.1.11")
        assert (six.advertise_addr, six.listen_addr) == ("[fd00::1]:2377", "[::]:2377")
        assert six.data_path_addr == "172.28.1.11"
        own = ask(advertise_addr="fd00::1", listen_addr="[fd00::1]:4000")
        assert (own.advertise_addr, own.listen_addr) == ("[fd00::1]:4000", "[fd00::1]:4000")
        assert ask(data_path_addr="FD00:0::1").data_path_addr == "fd00::1"
        with pytest.raises(InvalidArgument, match="fe80::1 holds on one link only"):
            ask(data_path_addr="fe80::1")
        with pytest.raises(InvalidArgument, match="fe80::1 holds on one link only"):
            ask(advertise_addr="fe80::1")
    six = join(remote_addrs=["[fd00::5]:99", "fd00::6"])
    assert six.remote_addrs == ["[fd00::5]:99", "[fd00::6]:2377"]


def test_the_port_to_listen_on_is_also_advertised() -> None:
    request = init(listen_addr="0.0.0.0:4444", advertise_addr="eth0")
    assert (request.listen_addr, request.advertise_addr) == ("0.0.0.0:4444", "172.28.1.11:4444")
    assert init(listen_addr="eth0").listen_addr == "172.28.1.11:2377"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"listen_addr": ""}, 'invalid ListenAddr "": invalid empty address'),
        ({"listen_addr": "nosuch:1"}, "listen address must be an IP address or network interface"),
        (
            {"advertise_addr": "0.0.0.0"},
            "advertise address must be a non-zero IP address or network interface",
        ),
        ({"advertise_addr": "eth9"}, "advertise address must be a non-zero IP address"),
        ({"data_path_addr": "eth9"}, "data path address must be a non-zero IP address"),
        ({"data_path_port": 80}, "Datapath port number is not in valid range (1024-49151) : 80"),
        ({"availability": "foo"}, 'invalid Availability: "foo"'),
        ({"default_addr_pool": ["10.0.0.0/33"]}, "invalid base pool 10.0.0.0/33"),
        ({"default_addr_pool": ["fd00::/129"]}, "invalid base pool fd00::/129"),
        ({"default_addr_pool": ["fe80::/10"]}, "use a private range such as fd00::/48"),
        ({"default_addr_pool": ["fd00::/126"]}, "use a private range such as fd00::/48"),
        ({"default_addr_pool": ["10.0.0.0/26"], "subnet_size": 24}, "Subnet size is too small for pool: 24"),
        ({"subnet_size": 30}, "subnet size is out of range: 30"),
        ({"spec": SwarmSpec(name="other")}, 'swarm spec must be named "default"'),
    ],
)
def test_init_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        init(**given)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "given",
    [
        {"auto_lock_managers": True},
        {"spec": SwarmSpec(encryption_config=EncryptionConfig(auto_lock_managers=True))},
        {"data_path_port": 7777},
        {"spec": SwarmSpec(ca_config=CAConfig(external_cas=[{"URL": "x"}]))},
    ],
)
def test_what_is_not_there_is_not_accepted_and_ignored(given: dict[str, Any]) -> None:
    with pytest.raises(Unimplemented):
        init(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"remote_addrs": []}, "at least 1 RemoteAddr is required to join"),
        ({"remote_addrs": [""]}, 'invalid remoteAddr "": invalid empty address'),
        ({"remote_addrs": ["1.2.3.4:99999"]}, "invalid remoteAddr"),
        ({"listen_addr": ""}, 'invalid ListenAddr ""'),
        ({"join_token": "SWMTKN-1-x"}, "invalid join token"),
        ({"join_token": ""}, "invalid join token"),
        ({"availability": "x"}, 'invalid Availability: "x"'),
    ],
)
def test_join_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        join(**given)
    assert message in caught.value.message


def test_join_completes_addresses() -> None:
    request = join(remote_addrs=["172.28.1.11", "manager.example:4000"], join_token=f" {TOKEN}\n")
    assert request.remote_addrs == ["172.28.1.11:2377", "manager.example:4000"]
    assert request.join_token == TOKEN


def test_joining_twice() -> None:
    for check in (
        lambda: check_init(InitRequest(), MANAGER, {}),
        lambda: check_join(JoinRequest(), WORKER, {}),
        lambda: check_join(JoinRequest(), LocalSwarm(state="pending"), {}),
    ):
        with pytest.raises(Unavailable, match="This node is already part of a swarm"):
            check()


def test_leaving() -> None:
    check_leave(WORKER, False, 0)
    check_leave(MANAGER, True, 1)
    with pytest.raises(Unavailable, match="This node is not part of a swarm"):
        check_leave(OUT, True, 0)
    with pytest.raises(Unavailable, match="Removing the last manager erases all current state of the swarm"):
        check_leave(MANAGER, False, 1)
    with pytest.raises(Unavailable, match="participating as a manager"):
        check_leave(MANAGER, False, 3)


@pytest.mark.parametrize(
    ("swarm", "words"),
    [
        (OUT, 'Use "docker swarm init" or "docker swarm join"'),
        (WORKER, "Worker nodes can't be used to view or modify cluster state"),
        (LocalSwarm(state="locked"), "needs to be unlocked"),
        (LocalSwarm(state="error", error="disk full"), "disk full"),
    ],
)
def test_why_this_node_does_not_answer(swarm: LocalSwarm, words: str) -> None:
    error: OverlaceError = explain_no_manager(swarm)
    assert error.status == 503 and words in error.message


def test_a_spec_posted_back_is_the_same() -> None:
    assert complete_spec(SwarmSpec()) == SwarmSpec()
