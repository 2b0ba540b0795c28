"""A message that a connection took before it died comes again, when its client has come back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.connections.delivery import Delivery
from gateway.connections.hub import Result
from gateway.connections.repeats import Repeats
from tests.unit.gateway.resume.test_questions import FakeLink, Node, answer, running, v1

pytestmark = pytest.mark.anyio


class Sender:
    """The processor: sends message 5 of partition 0 to alice, as often as a test says."""

    def __init__(self, node: Node) -> None:
        self.hub = node.hub
        self.repeats = Repeats(100, unscreened=node.hub.unscreened)

    def send(self) -> Result:
        place = "push-0-5"
        delivery = Delivery(b"5", message_id=place, position=place, as_of="zz")
        names = {0: ("alice", place, None, None)}
        (result,) = self.repeats.deliver([(delivery, "alice", None)], names, self.hub.deliver)
        return result


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as made:
        yield made


@pytest.mark.parametrize("is_answered_first", [True, False], ids=["after the answer", "before"])
async def test_a_new_owner_sends_again_what_a_dead_socket_took(
    node: Node, is_answered_first: bool
) -> None:
    """The new owner begins in front of the message, and answers before it has taken it in."""
    link, sender = FakeLink(), Sender(node)
    node.join(link)
    dead = node.hold("alice", make=v1)
    assert sender.send() == 1
    dead.connection.lost()
    client = node.come_back(positions={("push", 0): 4})
    await link.asked()
    if is_answered_first:
        node.questions.answered(link, answer(link, {0: 5}))
        assert client.is_through
    assert sender.send() == 1
    if not is_answered_first:
        assert client.got() == []
        node.questions.answered(link, answer(link, {0: 5}))
    assert client.got() == ["5"]
    assert sender.send() == 1
    assert client.got() == [], "once"
