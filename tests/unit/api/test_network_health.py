"""`overlace network health NAME`: the names docker takes, and what was perhaps meant."""

from __future__ import annotations

from .conftest import Api


async def test_a_network_is_found_as_docker_finds_it(swarm: Api) -> None:
    made = {}
    for name in ("shop_shop", "back"):
        status, body, _ = await swarm("POST", "/networks/create", {"Name": name, "Driver": "overlay"})
        assert status == 201
        made[name] = body["Id"]
    for ref in ("shop_shop", made["shop_shop"], made["shop_shop"][:14]):
        status, body, _ = await swarm("GET", f"/overlace/v1/networks/{ref}/health")
        assert (status, body["Name"]) == (200, "shop_shop"), ref
    for ref, near in (
        ("shop", "did you mean shop_shop?"),
        ("bakc", "did you mean back?"),
        ("qqqq", "back, "),
    ):
        status, body, _ = await swarm("GET", f"/overlace/v1/networks/{ref}/health")
        assert status == 404 and body["message"].startswith(f"network {ref} not found; ")
        assert near in body["message"], body
