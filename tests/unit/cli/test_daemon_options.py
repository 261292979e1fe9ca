"""The daemon's command line: defaults, and mistakes answered with option, value and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from overlace.cli.daemon import check_hosts, check_options, check_windows
from overlace.model.errors import InvalidArgument


def options(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "data_root": "/var/lib/overlace", "exec_root": "/run/overlace", "hosts": (), "pidfile": None,
        "hostname": "h", "underlay_address": None, "insecure_registries": (), "labels": (), "dns": (),
        "emulate_windows": None, "log_level": "info",
    }  # fmt: skip
    return check_options(**values | changes)


def test_the_socket_is_below_the_exec_root_unless_told() -> None:
    assert options(exec_root="/run/x").hosts == ("unix:///run/x/docker.sock",)
    told = ("unix:///tmp/a.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2375")
    assert options(hosts=told).hosts == told


def test_labels_are_pairs() -> None:
    assert options(labels=("rack=a", "zone=b=c", "empty=")).labels == {
        "rack": "a",
        "zone": "b=c",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hosts": ("docker.sock",)}, "invalid -H 'docker.sock': use unix:///path"),
        ({"hosts": ("tcp://1.2.3.4",)}, "use unix:///path/to/socket or tcp://IP:PORT"),
        ({"hosts": ("tcp://1.2.3.4:70000",)}, "tcp://IP:PORT"),
        ({"hosts": ("tcp://host:2375",)}, "'host' is no IP address"),
        ({"hosts": ("unix:///" + "a" * 107,)}, "at most 107 bytes"),
        ({"data_root": "here"}, "invalid --data-root 'here': use an absolute path"),
        ({"labels": ("rack",)}, "invalid --label 'rack': use KEY=VALUE"),
        ({"dns": ("dns.example",)}, "invalid --dns 'dns.example'"),
        ({"underlay_address": "fe80::1"}, "it holds on one link only"),
        (
            {"underlay_address": "fd00::1", "emulate_windows": "10.0.20348.2527"},
            "the HNS of a Windows host tunnels over IPv4 alone",
        ),
        ({"underlay_address": "eth0"}, "invalid --underlay-address 'eth0'"),
        ({"emulate_windows": "2022"}, "invalid --emulate-windows '2022': use a full build"),
    ],
)
def test_mistakes_name_option_value_and_remedy(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        options(**changes)
    assert words in refused.value.message


def test_a_windows_host_listens_on_a_named_pipe_and_a_linux_host_on_a_socket() -> None:
    pipe, socket = "npipe:////./pipe/overlace", "unix:///run/overlace/docker.sock"
    both = ("tcp://127.0.0.1:2375",)
    assert check_hosts((pipe, *both), windows=True) == (pipe, *both)
    assert check_hosts((socket, *both), windows=False) == (socket, *both)
    for host, windows, use in (
        (socket, True, "use npipe:////./pipe/NAME or tcp://IP:PORT"),
        ("npipe:////./pipe/a/b", True, "use npipe:////./pipe/NAME or tcp://IP:PORT"),
        (pipe, False, "use unix:///path/to/socket or tcp://IP:PORT"),
    ):
        with pytest.raises(InvalidArgument, match=use):
            check_hosts((host,), windows=windows)


@pytest.mark.parametrize(
    ("runtime", "emulate", "words"),
    [
        ("oci", None, "invalid --runtime oci: .* Docker Engine"),
        ("auto", "10.0.1.1", "invalid --emulate-windows"),
    ],
)
def test_what_a_real_windows_host_cannot_be(runtime: str, emulate: str | None, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check_windows(runtime, emulate)


def test_at_which_level_services_are_balanced() -> None:
    assert options().service_balancing == "auto"
    assert options(service_balancing="packet").service_balancing == "packet"
    check_windows("docker", None, "auto")
    with pytest.raises(InvalidArgument, match=r"invalid --service-balancing socket: .*own HNS"):
        check_windows("docker", None, "socket")
