"""The demo's reasons for a placement are the true ones."""

from __future__ import annotations

from typing import Any

from overlace.lab.cluster import NodeInfo, explain_placement


def node(name: str, os: str = "linux", **changes: Any) -> NodeInfo:
    values: dict[str, Any] = {
        "id": name, "hostname": name, "os": os, "architecture": "x86_64", "os_version": "", "state": "ready",
        "availability": "active", "role": "worker", "emulated": os == "windows",
    }  # fmt: skip
    return NodeInfo(**values | changes)


NODES = [node("linux-1"), node("linux-2"), node("windows-1", "windows")]


def service(**placement: Any) -> dict[str, Any]:
    return {"Spec": {"TaskTemplate": {"Placement": placement}}}


def test_a_windows_image_has_one_home() -> None:
    platforms = [{"OS": "windows", "Architecture": "amd64", "OSVersion": "10.0.20348.2527"}]
    said = explain_placement(service(Platforms=platforms), NODES)
    assert said == "image is for windows/amd64 10.0.20348.2527; only windows-1 can run it"


def test_a_linux_image_is_spread_over_linux_hosts() -> None:
    said = explain_placement(service(Platforms=[{"OS": "linux", "Architecture": "amd64"}]), NODES)
    assert said == "image is for linux/amd64; linux-1, linux-2 can run it; fewest tasks first"


def test_hosts_that_are_down_or_drained_are_no_reason() -> None:
    nodes = [node("linux-1"), node("linux-2", state="down"), node("linux-3", availability="drain")]
    assert explain_placement(service(Platforms=[{"OS": "linux"}]), nodes).endswith("only linux-1 can run it")


def test_constraints_and_preferences_are_named() -> None:
    said = explain_placement(
        service(
            Constraints=["node.role==worker"],
            Preferences=[{"Spread": {"SpreadDescriptor": "node.labels.rack"}}],
        ),
        NODES,
    )
    assert "constraint node.role==worker" in said and "spread over node.labels.rack" in said


def test_no_host_is_said() -> None:
    said = explain_placement(service(Platforms=[{"OS": "windows"}]), [node("linux-1")])
    assert said == "image is for windows/; no node can run it; fewest tasks first"
