"""What a node asks the swarm for its standalone containers, and how it hears of it."""

from __future__ import annotations

import asyncio

import pytest

from overlace.agent.standalone import attacher
from overlace.agent.standalone.attacher import Attacher, Member, attachment_id
from overlace.agent.standalone.network import plan_attachments, plan_network
from overlace.agent.standalone.records import Joined, Wish
from overlace.model.errors import NotFound, PermissionDenied, Unavailable
from overlace.model.netview import EndpointEntry, NetView, NetworkEntry, container_mac
from overlace.runtime.base import ContainerConfig

ID = "ab" * 32
WISH = Wish(
    config=ContainerConfig(id=ID, name="box", image="app:1", netns="", hostname="boxhost"),
    networks=(Joined(name="shop", target="shop", aliases=("al",), addresses=("10.0.1.9",)),),
)
[ONE] = plan_attachments(WISH)
NETWORK = NetworkEntry("net1", "shop", 4097, ("10.0.1.0/24",), ("10.0.1.1",))


def place(id: str = ONE.id, node: str = "n1") -> EndpointEntry:
    address = "10.0.1.9"
    return EndpointEntry(id, "net1", node, "", "", "box", address, container_mac(address), serving=True)


class Node:
    def __init__(self) -> None:
        self.view = NetView([NETWORK])
        self.told = 0
        self.attacher = Attacher(lambda network, address: 24)
        self.attacher.join(Member("n1", lambda: self.view, self.announce))

    def announce(self) -> None:
        self.told += 1

    def put(self, entry: EndpointEntry) -> None:
        self.view.put(entry)
        self.attacher.view_changed([entry.key])


def test_what_is_asked_for_and_what_the_network_driver_gets() -> None:
    assert (ONE.target, ONE.name, ONE.addresses) == ("shop", "box", ("10.0.1.9",))
    assert ONE.aliases == ("al", ID[:12], "boxhost") and ONE.id == attachment_id(
        ID, "shop", 0
    ) != attachment_id(ID, "shop", 1)
    assert plan_attachments(Wish(config=WISH.config, networks=(Joined(name="bridge"),))) == []


async def test_an_address_comes_with_the_view() -> None:
    node = Node()
    asking = asyncio.create_task(node.attacher.given([ONE]))
    await asyncio.sleep(0)
    assert node.told == 1 and node.attacher.to_tell() == (ONE,)
    node.put(place())
    [given] = await asking
    assert (given.network, given.network_id, given.addresses) == ("shop", "net1", ("10.0.1.9/24",))
    [attachment] = plan_network(WISH, [given]).attachments
    assert (attachment.network_id, attachment.addresses) == ("net1", ("10.0.1.9/24",))
    assert await node.attacher.given([ONE]) == [given] and node.told == 1, "nothing new to tell"


async def test_a_refusal_has_dockers_words() -> None:
    node = Node()
    asking = asyncio.create_task(node.attacher.given([ONE]))
    await asyncio.sleep(0)
    node.attacher.refused({ONE.id: ("PermissionDenied", "network shop not manually attachable")})
    with pytest.raises(PermissionDenied) as caught:
        await asking
    assert caught.value.message == (
        "Could not attach to network shop: rpc error: code = PermissionDenied desc = network shop not manually attachable"
    )
    node.attacher.refused({"other": ("NotFound", "x")})
    node.put(place())
    assert await node.attacher.given([ONE]), "asked again it may be given"


async def test_without_a_manager_it_ends_and_without_a_swarm_at_once() -> None:
    node = Node()
    with pytest.raises(Unavailable, match="no manager gave an address"):
        await node.attacher.given([ONE], seconds=0.01)
    node.attacher.quit()
    with pytest.raises(NotFound, match=r"^network shop not found$"):
        await node.attacher.given([ONE])


async def test_what_was_given_back_unheard_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacher, "AGAIN_SECONDS", 0.001)
    node = Node()
    node.attacher.want([ONE])
    node.put(place())
    node.attacher.drop([ONE.id])
    [telling] = [t for t in asyncio.all_tasks() if t.get_name() == "attachments given back"]
    await asyncio.wait([telling], timeout=0.05)  # its manager does nothing
    assert not telling.done() and node.told >= 3
    node.view.remove(place().key)
    node.attacher.view_changed([place().key])
    await telling
    assert node.attacher.to_tell() is None, "it was heard"


async def test_what_another_life_left_is_given_back() -> None:
    node = Node()
    assert node.attacher.to_tell() is None, "a node with none never speaks of it"
    node.put(place("left-over"))
    await asyncio.sleep(0)
    assert node.told == 1 and node.attacher.to_tell() == ()
    node.put(place("elsewhere", node="n2"))
    await asyncio.sleep(0)
    assert node.told == 1
    node.attacher.want([ONE])
    node.attacher.drop([ONE.id, "unknown"])
    assert node.told == 3
