"""Questions to processors, and how their answers come to clients: whole, with a gap, or never."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from gateway import metrics
from gateway.connections.connection import State
from gateway.connections.cursor import Cursor, Partition, base36, cursor_text
from gateway.connections.delivery import Delivery
from gateway.connections.gate import Gate, Replayed
from gateway.connections.hub import Refusal, Result
from gateway.connections.identity import Identity
from gateway.connections.node import GatewayNode
from gateway.resume.questions import MOST_ASKS, Questions
from gateway.transports.websocket import V1, WebSocketConnection
from registry.message import Push
from registry.resume import MAX_ASK_BYTES, MAX_QUESTIONS, Answer, Ask, Replay, Stamp, encode
from tests.support.clients import eventually
from tests.unit.gateway.connections.test_node import Rig
from tests.unit.gateway.fakes import FakeWire, identity
from tests.unit.gateway.transports.test_websocket import server_frames

pytestmark = pytest.mark.anyio

#: The registry's time when the clients of these tests left, and when they come back.
LEFT_MS, BACK_MS = 1_000_000, 1_010_000
RESUME_SECONDS = 120.0


def v1(who: Identity, keeper: GatewayNode) -> WebSocketConnection:
    return WebSocketConnection(who, keeper, subprotocol=V1)


class FakeLink:
    """A processor, as its link knows it: it is asked, and a test answers."""

    def __init__(self, processor: str = "p1") -> None:
        self.processor: str | None = processor
        self.asks: list[Ask] = []
        self.asked_at: list[float] = []  # by the loop's time
        self.taken: list[str] = []  # positions of messages of its answers
        self._news = asyncio.Event()

    def ask(self, ask: Ask) -> None:
        self.asks.append(ask)
        self.asked_at.append(asyncio.get_running_loop().time())
        self._news.set()

    def replayed(self, delivery: Delivery) -> None:
        self.taken.append(str(delivery.position))

    async def asked(self, times: int = 1) -> Ask:
        """Wait until it was asked so many times; give the last ask."""
        async with asyncio.timeout(5):
            while len(self.asks) < times:
                self._news.clear()
                await self._news.wait()
        return self.asks[-1]


class Client:
    """A client that has come back, and what its connection has written."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self.wire = FakeWire()
        connection.attach(self.wire)

    def got(self) -> list[str]:
        """Take what was written: payloads, and the names of controls in brackets."""
        forms = [json.loads(payload) for _, payload in server_frames(self.wire.take())]
        return [form.get("data", f"[{form.get('control')}]") for form in forms]

    @property
    def resumes(self) -> bool:
        """Whether a gate is still in front of it."""
        return isinstance(self.connection.screen, Gate)

    @property
    def is_through(self) -> bool:
        return isinstance(self.connection.screen, Replayed)


class Node(Rig):
    """A node with a registrar at work, links to processors, and clients that come back."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = Questions(self.node, resume_seconds=RESUME_SECONDS, clock=lambda: self.now)
        self.live()

    def live(self, *processors: str) -> None:
        """Let these processors be live at the last heartbeat."""
        self.as_of.held(BACK_MS, processors, at=self.now)
        for processor in processors:
            self.as_of.stamped(processor, BACK_MS)

    def join(self, *links: FakeLink) -> None:
        for link in links:
            self.questions.join(link)
        self.live(*(str(link.processor) for link in links))

    def come_back(
        self,
        user: str = "alice",
        *,
        device: str | None = None,
        positions: Mapping[Partition, int] | None = None,
    ) -> Client:
        connection = v1(identity(user, device), self.node)
        self.questions.gate(connection, Cursor(LEFT_MS, positions or {}))
        client = Client(connection)
        self.node.hold(connection, expires_at=int(self.wall + 1e6), address="a")
        connection.open(b"")
        self.questions.begin(connection)
        return client

    def come(self) -> Client:
        """Let a client come without a cursor; the handshake is still to be answered."""
        connection = v1(identity("alice"), self.node)
        client = Client(connection)
        self.node.hold(connection, expires_at=int(self.wall + 1e6), address="a")
        return client

    def live_message(self, offset: int, partition: int = 0, *, payload: bytes = b"") -> Result:
        """Deliver what a processor has looked up; the payload is the offset, or what is given."""
        position, data = f"push-{partition}-{offset}", payload or b"%d" % offset
        delivery = Delivery(data, message_id=position, position=position, as_of="zz")
        (result,) = self.hub.deliver([(delivery, "alice", None)])
        return result

    def after(self, seconds: float) -> None:
        """Let the time pass, and the clock tick once."""
        self.now += seconds
        self.questions.advance()

    async def after_each(self, seconds: float, until_seconds: float) -> None:
        """Let the time pass in steps, with turns of the event loop between."""
        end = self.now + until_seconds
        while self.now < end:
            self.after(seconds)
            for _ in range(5):
                await asyncio.sleep(0)


@asynccontextmanager
async def running() -> AsyncIterator[Node]:
    made = Node()
    registrar = asyncio.create_task(made.node.registrar.run())
    try:
        yield made
    finally:
        made.questions.close()
        registrar.cancel()
        with suppress(asyncio.CancelledError):
            await registrar


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as made:
        yield made


@pytest.fixture
async def link(node: Node) -> FakeLink:
    """Give the link of the only processor."""
    link = FakeLink()
    node.join(link)
    return link


def pushes(*offsets: int, partition: int = 0, user: str = "alice") -> list[msgspec.Raw]:
    """Encode messages as a processor does; the payload is the offset."""
    return [
        msgspec.Raw(encode(Push(user, b"%d" % offset, f"m-{offset}", position=position)))
        for offset in offsets
        if (position := f"push-{partition}-{offset}")
    ]


def answer(
    link: FakeLink,
    owned: Mapping[int, int],
    *replays: Replay,
    ask: Ask | None = None,
    count: int | None = None,
) -> Answer:
    """Make a processor's answer: the ends of the partitions that it owns, and replays.

    `count` is how many partitions the topic has; as many as are owned where nothing is said.
    """
    to = ask or link.asks[-1]
    given = replays or tuple(Replay() for _ in to.questions)
    ends = [("push", number, end) for number, end in owned.items()]
    return Answer(to.number, str(link.processor), ends, {"push": count or len(owned)}, list(given))


def resumes(result: str) -> float:
    return metrics.RESUMES.labels(result)._value.get()  # type: ignore[no-any-return]


def timed() -> float:
    """Return how many clients' resumes were timed."""
    (metric,) = metrics.RESUME_SECONDS.collect()
    return next(each.value for each in metric.samples if each.name.endswith("_count"))


def replayed() -> float:
    return metrics.REPLAYED._value.get()  # type: ignore[no-any-return]


async def waits(node: Node, user: str) -> None:
    """Return when a user's connection waits to be asked for."""
    await eventually(
        lambda: user in [each.connection.user for each in node.questions._waiting], "it waits"
    )


# What is asked, and when


async def test_a_client_is_asked_for_as_the_user_and_device_of_its_token(
    node: Node, link: FakeLink
) -> None:
    node.come_back(device="phone", positions={("push", 3): 17})
    (question,) = (await link.asked()).questions
    assert (question.user, question.device) == ("alice", "phone")
    assert (question.as_of_ms, question.positions) == (LEFT_MS, [("push", 3, 17)])


async def test_it_is_asked_for_only_once_look_ups_find_it(node: Node, link: FakeLink) -> None:
    node.registry.open.clear()
    node.come_back()
    await node.after_each(0.25, 2.0)
    assert link.asks == []
    node.registry.open.set()
    await link.asked()
    assert "alice" in node.registry.users


async def test_a_client_that_could_not_be_registered_is_asked_for_from_its_answer_on(
    node: Node, link: FakeLink
) -> None:
    client = node.come()
    node.questions.gate_from_now(client.connection)
    client.connection.open(b"")
    node.questions.begin(client.connection)
    (question,) = (await link.asked()).questions
    assert (question.as_of_ms, question.positions) == (BACK_MS, [])
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(8))))
    assert client.got() == ["8"]
    assert client.is_through


async def test_a_client_that_a_message_has_reached_is_asked_for_no_more(
    node: Node, link: FakeLink
) -> None:
    reached, resuming, ended = node.come(), node.come_back(), node.come()
    screen = resuming.connection.screen
    node.live_message(7)
    ended.connection.abort("lost")
    for client in (reached, resuming, ended):
        node.questions.gate_from_now(client.connection)
    assert reached.connection.screen is None
    assert resuming.connection.screen is screen
    assert ended.connection.screen is None


async def test_connections_that_come_while_an_ask_is_under_way_go_together(
    node: Node, link: FakeLink
) -> None:
    node.come_back("first")
    await link.asked()
    for number in range(20):
        node.come_back(f"u{number}")
    ask = await link.asked(2)
    assert len(ask.questions) == 20


async def test_a_processor_has_a_few_asks_to_answer_at_once_and_gets_the_next_behind_an_answer(
    node: Node, link: FakeLink
) -> None:
    for number in range(MOST_ASKS):
        node.come_back(f"u{number}")
        await link.asked(number + 1)
    node.come_back("last")
    await node.after_each(0.25, 1.0)
    assert len(link.asks) == MOST_ASKS
    node.questions.answered(link, answer(link, {0: 5}, ask=link.asks[0]))
    assert [q.user for q in (await link.asked(MOST_ASKS + 1)).questions] == ["last"]


async def test_a_processor_with_a_few_asks_to_answer_is_left_out_and_the_others_are_asked(
    node: Node,
) -> None:
    busy, quick = FakeLink("p1"), FakeLink("p2")
    node.join(busy, quick)
    for number in range(MOST_ASKS):
        node.come_back(f"u{number}")
        await quick.asked(number + 1)
        node.questions.answered(quick, answer(quick, {0: 5}, count=2))
    node.come_back("last")
    assert [q.user for q in (await quick.asked(MOST_ASKS + 1)).questions] == ["last"]
    assert len(busy.asks) == MOST_ASKS


async def next_ask(node: Node) -> asyncio.Handle:
    """Wait until the next ask is about to be made; give its handle."""
    async with asyncio.timeout(5):
        while node.questions._soon is None:  # noqa: ASYNC110 - the handle lasts a turn
            await asyncio.sleep(0)
    return node.questions._soon


@pytest.mark.parametrize(("clients", "pause"), [(1, 0.02), (5, 0.05), (40, 0.1)])
async def test_the_more_clients_an_ask_has_the_later_is_the_next_within_bounds(
    node: Node, link: FakeLink, clients: int, pause: float
) -> None:
    came_back_at = asyncio.get_running_loop().time()
    for number in range(clients):
        node.come_back(f"u{number}")
    await link.asked()
    next_ask_at = node.questions._next_ask_at
    assert came_back_at + pause <= next_ask_at <= link.asked_at[0] + pause
    for user in ("second", "third"):
        node.come_back(user)
    assert [q.user for q in (await link.asked(2)).questions] == ["second", "third"]
    assert link.asked_at[1] > next_ask_at - 0.002, "uvloop rounds to 1 ms"


async def test_after_a_pause_a_client_is_asked_for_at_once(node: Node, link: FakeLink) -> None:
    node.come_back("first")
    await link.asked()
    node.questions._next_ask_at -= 0.02
    node.come_back("second")
    assert not hasattr(await next_ask(node), "when"), "in the next turn, and no timer's"
    assert [q.user for q in (await link.asked(2)).questions] == ["second"]


async def test_clients_of_one_turn_are_asked_for_together(node: Node, link: FakeLink) -> None:
    for number in range(5):
        node.come_back(f"u{number}")
    assert [q.user for q in (await link.asked()).questions] == [f"u{n}" for n in range(5)]


async def test_an_answer_for_many_is_taken_a_part_in_each_turn_of_the_loop(
    node: Node, link: FakeLink
) -> None:
    clients = [node.come_back(f"u{number}") for number in range(50)]
    await link.asked()
    node.questions.answered(link, answer(link, {0: 5}))
    through = [sum(client.is_through for client in clients)]
    for _ in range(2):
        await asyncio.sleep(0)
        through.append(sum(client.is_through for client in clients))
    assert through == [20, 40, 50], "pushes go on between two turns"


async def test_the_second_answer_of_a_link_that_is_being_taken_counts_no_more(
    node: Node, link: FakeLink
) -> None:
    clients = [node.come_back(f"u{number}") for number in range(50)]
    await link.asked()
    for _ in range(2):
        node.questions.answered(link, answer(link, {0: 5}))
    node.questions.leave(link)
    for _ in range(3):
        await asyncio.sleep(0)
    assert all(client.is_through for client in clients), "taken to its end, though the link is gone"
    assert [len(ask.questions) for ask in link.asks] == [50]


async def test_an_ask_fits_its_frame_whatever_cursors_clients_bring(
    node: Node, link: FakeLink
) -> None:
    longest = {("t" * 249, 2**31 - 1 - n): 2**63 - 1 for n in range(64)}
    node.come_back("first")
    await link.asked()
    for number in range(MAX_QUESTIONS + 100):
        node.come_back(f"u{number}", positions=longest)
    asked = 1
    while sum(len(ask.questions) for ask in link.asks) <= MAX_QUESTIONS + 100:
        node.questions.answered(link, answer(link, {0: 5}))
        asked += 1
        await link.asked(asked)
    sizes = [len(encode(ask)) for ask in link.asks]
    assert max(sizes) < MAX_ASK_BYTES
    assert max(len(ask.questions) for ask in link.asks) <= MAX_QUESTIONS


# Answers


async def test_what_was_missed_comes_first_then_what_came_meanwhile_and_the_gate_goes(
    node: Node, link: FakeLink
) -> None:
    before, timed_before = resumes("whole"), timed()
    client = node.come_back(positions={("push", 0): 3})
    await link.asked()
    assert [node.live_message(at) for at in (8, 9)] == [1, 1]
    assert client.got() == []
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(4, 8))))
    assert client.got() == ["4", "8", "9"]
    assert client.is_through
    assert (resumes("whole"), timed()) == (before + 1, timed_before + 1)
    assert node.live_message(10) == 1
    assert node.live_message(8) == 1, "a late copy counts as taken"
    assert client.got() == ["10"]


async def test_cursors_keep_the_clients_time_until_all_is_written_and_then_have_the_nodes(
    node: Node,
) -> None:
    first, second = FakeLink("p1"), FakeLink("p2")
    node.join(first, second)
    client = node.come_back()
    await first.asked()
    node.questions.answered(first, answer(first, {0: 9}, Replay(pushes(4)), count=2))
    (form,) = [json.loads(payload) for _, payload in server_frames(client.wire.take())]
    assert form["cursor"] == cursor_text(LEFT_MS, {("push", 0): 4})
    assert node.node.cursor(client.connection) == cursor_text(LEFT_MS, {("push", 0): 4})
    node.questions.answered(second, answer(second, {1: 3}, count=2))
    assert node.node.cursor(client.connection) == cursor_text(BACK_MS, {("push", 0): 4})


async def test_an_answered_partition_flows_while_another_processor_is_silent(node: Node) -> None:
    first, second = FakeLink("p1"), FakeLink("p2")
    node.join(first, second)
    client = node.come_back()
    await second.asked()
    node.live_message(20, partition=0)
    node.live_message(30, partition=1)
    node.questions.answered(first, answer(first, {0: 20}, Replay(pushes(5)), count=2))
    assert client.got() == ["5", "20"]
    node.live_message(21, partition=0)
    assert client.got() == ["21"]
    assert client.resumes
    node.questions.answered(second, answer(second, {1: 30}, count=2))
    assert client.got() == ["30"]
    assert client.is_through


async def test_a_processor_that_owns_nothing_is_waited_for_too(node: Node) -> None:
    first, idle = FakeLink("p1"), FakeLink("idle")
    node.join(first, idle)
    client = node.come_back()
    await idle.asked()
    node.questions.answered(first, answer(first, {0: 9}))
    assert client.resumes, "the idle one may remember where the user was"
    node.questions.answered(idle, answer(idle, {}, count=1))
    assert client.is_through


async def test_a_live_processor_without_a_link_is_waited_for(node: Node, link: FakeLink) -> None:
    node.live("p1", "p2")
    client = node.come_back()
    await link.asked()
    node.questions.answered(link, answer(link, {0: 9}))
    assert client.resumes
    late = FakeLink("p2")
    node.questions.join(late)
    node.after(2.0)
    await late.asked()
    node.questions.answered(late, answer(late, {}, count=1))
    assert client.is_through


async def test_a_processor_that_joins_is_asked_at_once_for_clients_that_wait_for_their_next_ask(
    node: Node,
) -> None:
    node.live("p1")
    client = node.come_back()
    await eventually(lambda: len(node.questions._again) == 1, "nobody could be asked")
    link = FakeLink()
    node.questions.join(link)
    await link.asked()  # the clock stands still
    assert not node.questions._again
    node.questions.answered(link, answer(link, {0: 9}))
    assert client.is_through


async def test_when_a_processor_leaves_its_partitions_are_asked_of_the_others(
    node: Node,
) -> None:
    first, second = FakeLink("p1"), FakeLink("p2")
    node.join(first, second)
    client = node.come_back()
    await second.asked()
    node.questions.answered(first, answer(first, {0: 9}, Replay(pushes(5)), count=2))
    node.live_message(7, partition=1)
    node.questions.leave(second)
    node.live("p1")
    node.after(1.0)
    ask = await first.asked(2)
    assert ask.questions[0].positions == [("push", 0, 5)]
    both = answer(first, {0: 12, 1: 7}, Replay(pushes(11) + pushes(6, partition=1)))
    node.questions.answered(first, both)
    assert client.got() == ["5", "6", "7"], "11 is looked up after the question, and comes live"
    assert client.is_through


async def test_a_part_that_is_not_known_any_more_is_a_gap_told_before_the_rest(
    node: Node, link: FakeLink
) -> None:
    before = resumes("gap")
    client = node.come_back()
    await link.asked()
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(8), incomplete=[0])))
    assert client.got() == ["[gap]", "8"]
    assert client.is_through
    assert resumes("gap") == before + 1


async def test_a_gap_is_told_once_whoever_finds_it(node: Node) -> None:
    first, second = FakeLink("p1"), FakeLink("p2")
    node.join(first, second)
    client = node.come_back()
    await second.asked()
    for link, number in ((first, 0), (second, 1)):
        node.questions.answered(link, answer(link, {number: 9}, Replay(incomplete=[0]), count=2))
    assert client.got() == ["[gap]"]


async def test_a_position_of_an_earlier_topic_of_the_name_swallows_nothing(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back(positions={("push", 0): 5_000})
    await link.asked()
    node.live_message(3)
    replay = Replay(pushes(0, 1), incomplete=[0], void=[0])
    node.questions.answered(link, answer(link, {0: 2}, replay))
    node.live_message(4)
    assert client.got() == ["[gap]", "0", "1", "3", "4"]


# Pages, and clients without room


async def test_of_an_answer_that_was_cut_the_rest_is_asked_for_at_once(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    await link.asked()
    node.live_message(30)
    node.questions.answered(link, answer(link, {0: 20}, Replay(pushes(1, 2), cut={0: 3})))
    assert client.got() == ["1", "2"]
    ask = await link.asked(2)
    assert ask.questions[0].positions == [("push", 0, 2)]
    node.questions.answered(link, answer(link, {0: 21}, Replay(pushes(3, 20))))
    assert client.got() == ["3", "20", "30"]
    assert client.is_through


async def test_a_client_without_room_gets_the_answer_when_it_reads_and_nothing_passes_it(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    await link.asked()
    client.wire.full = True
    node.questions.answered(link, answer(link, {0: 20}, Replay(pushes(1, 2))))
    assert client.got() == []
    client.wire.full = False
    assert node.live_message(21) == 1
    assert client.got() == [], "1 and 2 come first"
    node.after(0.25)
    assert client.got() == ["1", "2", "21"]
    assert client.is_through


async def test_an_answer_joins_no_backlog(node: Node, link: FakeLink) -> None:
    """A backlog is bounded, and with drop-oldest its first messages would go."""
    client = node.come_back()
    await link.asked()
    client.wire.waiting = True
    node.questions.answered(link, answer(link, {0: 20}, Replay(pushes(1, 2))))
    node.after(0.25)
    assert client.got() == []
    client.wire.waiting = False
    node.after(0.25)
    assert client.got() == ["1", "2"]


async def test_missed_messages_are_written_together_as_far_as_there_is_room(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    await link.asked()
    writes = 0

    def wait_for_the_client() -> None:
        nonlocal writes
        writes += 1
        client.wire.waiting = True

    client.wire.on_write = wait_for_the_client
    large = encode(Push("alice", b"x" * 16_384, "m-10", position="push-0-10"))
    missed = [*pushes(*range(1, 10)), msgspec.Raw(large), *pushes(11, 12)]
    node.questions.answered(link, answer(link, {0: 20}, Replay(missed)))
    assert writes == 1
    assert client.got() == [*map(str, range(1, 10)), "x" * 16_384]
    client.wire.waiting = False
    node.after(0.25)
    assert writes == 2
    assert client.got() == ["11", "12"]
    assert client.is_through


async def test_pages_reach_a_slow_client_once_and_in_order(node: Node, link: FakeLink) -> None:
    client = node.come_back()
    await link.asked()
    client.wire.full = True
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(1, 2), cut={0: 3})))
    for _ in range(8):
        asks = len(link.asks)
        await node.after_each(0.25, 0.25)
        if len(link.asks) > asks:  # as it is asked for while it does not read
            page = answer(link, {0: 9}, Replay(pushes(1, 2), cut={0: 3}))
            node.questions.answered(link, page)
    client.wire.full = False
    await node.after_each(0.25, 5.0)
    assert client.got() == ["1", "2"]
    assert link.asks[-1].questions[0].positions == [("push", 0, 2)]
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(3, 4))))
    assert client.got() == ["3", "4"]


async def test_a_gate_that_is_full_refuses_and_lets_the_message_in_when_it_comes_again(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    await link.asked()
    before = metrics.GATE_OVERFLOWS._value.get()
    results = [node.live_message(at) for at in range(65)]
    assert results == [1] * 64 + [Refusal.OVERLOADED]
    assert metrics.GATE_OVERFLOWS._value.get() == before + 1
    node.questions.answered(link, answer(link, {0: 0}))
    assert node.live_message(64) == 1
    assert client.got() == [str(at) for at in range(65)]


# What is noted for receipts


async def test_a_message_of_an_answer_counts_as_replayed_once_it_is_written(node: Node) -> None:
    before = replayed()
    first, second = FakeLink("p1"), FakeLink("p2")
    node.join(first, second)
    client = node.come_back()
    await second.asked()
    client.wire.full = True
    node.questions.answered(first, answer(first, {0: 9}, Replay(pushes(4, 8)), count=2))
    assert (first.taken, replayed() - before) == ([], 0)
    client.wire.full = False
    node.after(0.25)
    assert (first.taken, second.taken) == (["push-0-4", "push-0-8"], [])
    theirs = Replay(pushes(3, partition=1))
    node.questions.answered(second, answer(second, {1: 5}, theirs, count=2))
    assert (first.taken, second.taken) == (["push-0-4", "push-0-8"], ["push-1-3"])
    assert replayed() - before == 3
    assert client.is_through


async def test_a_live_message_that_waited_behind_the_gate_is_no_replayed_one(
    node: Node, link: FakeLink
) -> None:
    """Also where it is in the answer too: its batch has counted it as taken."""
    before = replayed()
    client = node.come_back()
    await link.asked()
    assert [node.live_message(at) for at in (5, 9)] == [1, 1]
    node.questions.answered(link, answer(link, {0: 6}, Replay(pushes(4, 5))))
    assert client.got() == ["4", "5", "9"]
    assert (link.taken, replayed() - before) == (["push-0-4"], 1)


async def test_each_connection_of_a_user_takes_its_own_copy(node: Node, link: FakeLink) -> None:
    node.come_back("first")
    await link.asked()
    clients = [node.come_back(), node.come_back()]
    await link.asked(2)
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(5)), Replay(pushes(5))))
    assert [client.got() for client in clients] == [["5"], ["5"]]
    assert link.taken == ["push-0-5"] * 2


# In vain


async def test_after_a_minute_without_an_answer_the_client_is_told_of_a_gap_and_goes_on(
    node: Node, link: FakeLink
) -> None:
    before = resumes("timed-out")
    client = node.come_back()
    await link.asked()
    node.live_message(8)
    node.live_message(7)
    await node.after_each(1.0, 55.0)
    assert client.resumes
    assert client.got() == []
    await node.after_each(1.0, 10.0)
    assert client.got() == ["[gap]", "7", "8"]
    assert client.is_through
    assert resumes("timed-out") == before + 1
    node.live_message(9)
    assert client.got() == ["9"]


async def test_a_client_whose_question_never_has_its_turn_is_told_after_a_minute(
    node: Node, link: FakeLink
) -> None:
    """The processor has as many asks as may be under way, and answers none."""
    for number in range(MOST_ASKS):
        node.come_back(f"u{number}")
        await link.asked(number + 1)
    await node.after_each(0.25, 30.0)
    last = node.come_back("last")
    await waits(node, "last")
    await node.after_each(0.25, 59.0)
    assert last.resumes
    await node.after_each(0.25, 2.0)
    assert last.got() == ["[gap]"]
    assert last.is_through


async def test_asks_that_are_never_answered_make_way_after_a_minute(
    node: Node, link: FakeLink
) -> None:
    for number in range(MOST_ASKS):
        node.come_back(f"u{number}")
        await link.asked(number + 1)
    await node.after_each(0.25, 30.0)
    node.come_back("last")
    await waits(node, "last")
    await node.after_each(0.25, 29.0)
    assert len(link.asks) == MOST_ASKS
    await node.after_each(0.25, 2.0)
    assert "last" in [q.user for q in link.asks[MOST_ASKS].questions]


async def test_a_processor_that_answers_for_nothing_is_asked_again_with_pauses(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    for times in range(1, 6):
        await link.asked(times)
        node.questions.answered(link, answer(link, {}, count=1))
        assert len(link.asks) == times, "not at once"
        await node.after_each(0.25, 2.0)
    node.questions.answered(link, answer(link, {0: 9}))
    assert client.is_through


async def test_a_partition_that_nobody_answers_for_is_given_up_though_others_are_answered(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    await link.asked()
    node.live_message(7, partition=1)
    for _ in range(5):
        node.questions.answered(link, answer(link, {0: 9}, count=2))
        await node.after_each(0.25, 2.0)
    assert "[gap]" in client.got()
    assert client.is_through


async def test_where_no_processor_takes_part_messages_wait_for_seconds_and_no_longer(
    node: Node,
) -> None:
    client = node.come_back()
    await node.after_each(0.25, 1.0)
    assert node.live_message(7) == 1
    await node.after_each(0.25, 6.0)
    assert client.got() == ["[gap]", "7"]
    assert client.is_through


async def test_the_first_message_of_a_partition_is_no_reason_to_give_up(
    node: Node, link: FakeLink
) -> None:
    """It had no owner for seconds, and its new one is not live for this node yet."""
    client = node.come_back()
    for _ in range(5):
        await link.asked()
        node.questions.answered(link, answer(link, {0: 9}, count=2))
        await node.after_each(0.25, 2.0)
    node.live_message(7, partition=1)
    node.questions.answered(link, answer(link, {0: 9}, count=2))
    await node.after_each(0.25, 2.0)
    owner = FakeLink("p2")
    node.join(link, owner)
    while not owner.asks:
        await node.after_each(0.25, 0.25)
    replay = Replay(pushes(6, 7, partition=1))
    node.questions.answered(link, answer(link, {0: 9}, count=2))
    node.questions.answered(owner, answer(owner, {1: 8}, replay, count=2))
    assert client.got() == ["6", "7"]
    assert client.is_through


async def test_while_the_lease_of_a_processor_that_died_lasts_nobody_gives_up(node: Node) -> None:
    """It may have been the owner, and answered before: its partitions are about to get another."""
    dead, other = FakeLink("dead"), FakeLink("other")
    node.join(dead, other)
    client = node.come_back()
    await dead.asked()
    node.questions.answered(dead, answer(dead, {}, count=2))
    node.questions.answered(other, answer(other, {0: 9}, count=2))
    node.live_message(7, partition=1)
    node.questions.leave(dead)
    for _ in range(7):
        await node.after_each(0.25, 2.0)
        node.questions.answered(other, answer(other, {0: 9}, count=2))
    assert client.resumes
    node.live("other")
    await node.after_each(0.25, 2.5)
    node.questions.answered(
        other, answer(other, {0: 9, 1: 8}, Replay(pushes(6, 7, partition=1)), count=2)
    )
    assert client.got() == ["6", "7"]
    assert client.is_through


async def test_a_partition_that_its_processor_can_not_answer_for_yet_is_waited_for(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    await link.asked()
    node.live_message(7, partition=1)
    for _ in range(7):
        given = answer(link, {0: 9}, count=2)
        given.pending.append(("push", 1))
        node.questions.answered(link, given)
        await node.after_each(0.25, 2.0)
    assert client.got() == []
    node.questions.answered(link, answer(link, {1: 8}, count=2))
    assert client.got() == ["7"]
    assert client.is_through


async def test_a_processor_without_any_partition_is_about_to_get_some(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    await link.asked()
    node.live_message(7)
    for _ in range(7):
        node.questions.answered(link, answer(link, {}, count=1))
        await node.after_each(0.25, 2.0)
    assert client.got() == []


async def test_while_the_registry_is_away_the_client_waits_and_is_told_in_the_end(
    node: Node, link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(user: str, *, timeout_seconds: float) -> bool:
        node.now += timeout_seconds
        await asyncio.sleep(0)
        return False

    async def no_pause(seconds: float) -> None:
        await turn(0)

    turn = asyncio.sleep
    monkeypatch.setattr(node.node.registrar, "findable", never)
    monkeypatch.setattr(node.node.registrar, "is_findable", lambda _: False)
    monkeypatch.setattr("gateway.resume.questions.asyncio.sleep", no_pause)
    client = node.come_back()
    node.live_message(7)
    async with asyncio.timeout(5):
        while client.resumes:
            await turn(0)
    assert link.asks == []
    assert client.got() == ["[gap]", "7"]


# Connections that end, and answers that are of no use


async def test_of_a_connection_that_has_ended_nothing_is_left(node: Node, link: FakeLink) -> None:
    client = node.come_back()
    ask = await link.asked()
    client.connection.lost()
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(5)), ask=ask))
    await node.after_each(1.0, RESUME_SECONDS + 70.0)
    assert client.connection.state is State.CLOSED
    assert (node.hub.screened, client.connection.screen) == ({}, None)
    assert len(link.asks) == 1


async def test_the_screen_goes_when_no_late_copy_comes_any_more(node: Node, link: FakeLink) -> None:
    client = node.come_back()
    await link.asked()
    node.questions.answered(link, answer(link, {0: 9}))
    node.after(RESUME_SECONDS - 1)
    assert node.hub.screened == {"alice": 1}
    node.after(2.0)
    assert client.connection.screen is None
    assert node.hub.screened == {}


async def test_two_connections_of_a_user_resume_each_by_itself(node: Node, link: FakeLink) -> None:
    first = node.come_back(positions={("push", 0): 4})
    await link.asked()
    second = node.come_back(positions={("push", 0): 6})
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(5, 6, 8))))
    assert first.got() == ["5", "6", "8"]
    assert node.live_message(9) == 2
    assert (first.got(), second.got()) == (["9"], [])
    await link.asked(2)
    node.questions.answered(link, answer(link, {0: 10}, Replay(pushes(8, 9))))
    assert second.got() == ["8", "9"]


def of_no_use(*messages: bytes, replays: int = 1, number: int = 0) -> Answer:
    """Make an answer; `number` is how far from the ask's number its own is."""
    given = [Replay([msgspec.Raw(message) for message in messages]) for _ in range(replays)]
    return Answer(number, "p1", [("push", 0, 9)], {"push": 1}, given)


NONSENSE = {
    "of no ask": of_no_use(number=1),
    "of an ask long ago": of_no_use(number=-1),
    "too few replays": of_no_use(replays=0),
    "too many replays": of_no_use(replays=2),
    "a number": of_no_use(b"\x07"),
    "cut short": of_no_use(b"\x81"),
    **{
        name: of_no_use(encode(push))
        for name, push in {
            "another user's": Push("mallory", b"x", "m", position="push-0-5"),
            "another device's": Push("alice", b"x", "m", device="d", position="push-0-5"),
            "no position": Push("alice", b"x", "m"),
            "a line in its position": Push("alice", b"x", "m", position="a\nid: 7-0-5"),
            "a comma in its position": Push("alice", b"x", "m", position="a,b-0-5"),
            "a line in its id": Push("alice", b"x", "m\nid: 7", position="push-0-5"),
            "a line in its type": Push("alice", b"x", "m", "t\nid: 7", position="push-0-5"),
            "a reserved type": Push("alice", b"x", "m", "pushgate.gap", position="push-0-5"),
        }.items()
    },
}


@pytest.mark.parametrize("name", list(NONSENSE))
async def test_an_answer_of_no_use_reaches_no_client_and_is_asked_for_again(
    node: Node, link: FakeLink, name: str
) -> None:
    client = node.come_back()
    await link.asked()
    given = NONSENSE[name]
    node.questions.answered(
        link, msgspec.structs.replace(given, number=link.asks[-1].number + given.number)
    )
    assert client.got() == []
    assert client.resumes
    await node.after_each(0.25, 3.0)
    await link.asked(2)
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(5))))
    assert client.got() == ["5"]
    assert client.is_through


async def test_an_answer_that_comes_after_its_time_counts_all_the_same(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    ask = await link.asked()
    await node.after_each(0.5, 5.0)
    node.questions.answered(link, answer(link, {0: 9}, Replay(pushes(5)), ask=ask))
    assert client.got() == ["5"]
    assert client.is_through


async def test_an_answer_of_one_that_was_not_asked_does_not_count(
    node: Node, link: FakeLink
) -> None:
    client = node.come_back()
    ask = await link.asked()
    late = FakeLink("p2")
    node.join(late)
    node.questions.answered(late, answer(late, {0: 9}, Replay(pushes(5)), ask=ask))
    assert client.got() == []
    assert client.resumes


async def test_an_answer_is_taken_once(node: Node, link: FakeLink) -> None:
    node.join(FakeLink("p2"))
    node.live("p1", "p2")
    client = node.come_back()
    await link.asked()
    given = answer(link, {0: 9}, Replay(pushes(5)))
    node.questions.answered(link, given)
    node.questions.answered(link, given)
    assert client.got() == ["5"]


async def test_a_fault_in_one_connection_leaves_the_others_their_answers(
    node: Node, link: FakeLink
) -> None:
    node.come_back("first")
    await link.asked()
    broken, sound = node.come_back("broken"), node.come_back("sound")
    await link.asked(2)

    def fail() -> None:
        raise RuntimeError("as the test wants it")

    broken.wire.on_write = fail
    replays = [Replay(pushes(5, user=q.user)) for q in link.asks[-1].questions]
    node.questions.answered(link, answer(link, {0: 9}, *replays))
    assert sound.got() == ["5"]
    assert not broken.connection.takes_messages


# Cursors and stamps


@pytest.mark.parametrize(
    ("age_seconds", "is_good"),
    [(0.0, True), (119.0, True), (121.0, False), (-29.0, True), (-31.0, False)],
)
async def test_a_cursor_is_good_for_the_window_by_the_registrys_clock(
    node: Node, age_seconds: float, is_good: bool
) -> None:
    text = base36(BACK_MS - int(age_seconds * 1_000))
    assert (node.questions.cursor_in(text) is not None) is is_good


async def test_a_node_whose_own_time_stands_still_reads_other_nodes_cursors(node: Node) -> None:
    node.as_of.held(BACK_MS, {"p1", "unreachable"}, at=node.now)
    node.now += 90.0
    assert node.questions.cursor_in(base36(BACK_MS + 90_000)) is not None


async def test_a_stamp_moves_the_nodes_time_and_tells_whose_messages_may_be_missing(
    node: Node, link: FakeLink
) -> None:
    missing, other = node.hold("alice", make=v1), node.hold("bob", make=v1)
    node.as_of.held(BACK_MS + 9_000, {"p1"}, at=node.now)
    node.questions.stamped(Stamp("p1", BACK_MS + 5_000, RESUME_SECONDS, ["alice", "nobody"]))
    assert b"gap" in missing.wire.sent
    assert b"gap" not in other.wire.sent
    assert node.as_of.ms == BACK_MS + 5_000


async def test_where_too_many_are_missing_to_be_named_all_are_told(
    node: Node, link: FakeLink
) -> None:
    held = [node.hold(user, make=v1) for user in ("alice", "bob")]
    stamp = Stamp("p1", BACK_MS, RESUME_SECONDS, ["alice"], missed_more=True)
    node.questions.stamped(stamp)
    assert all(b"gap" in each.wire.sent for each in held)
