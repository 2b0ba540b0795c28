"""One batch to one gateway over a real link: what each answer, and the lack of one, means."""

import asyncio
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import msgspec
import pytest
from structlog.testing import capture_logs

from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.forward import (
    MISDIRECTED,
    NO_LINK,
    REFUSED,
    UNREACHABLE,
    Failure,
    Forwarder,
    Partly,
    Result,
    push_size,
)
from processor.sending.link import WINDOW
from processor.sending.node_queue import NodeQueue
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.message import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, Envelope, Push
from registry.networks import networks
from registry.proof import proof
from tests.support.links import (
    SWITCHING,
    Request,
    frame,
    http,
    link_server,
    listening,
    results,
    take_all,
)

pytestmark = pytest.mark.anyio

SECRET = "internal secret of tests"
TIMEOUT_SECONDS = 0.3
PROGRESS = Progress(TopicPartition("push", 0), lane=0)


@pytest.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    made = Forwarder(Reach(GatewayCalls(secret=SECRET)), timeout_seconds=TIMEOUT_SECONDS)
    yield made
    await made.close()


def refused(status: int) -> bytes:
    return msgspec.msgpack.encode({"refused": status, "reason": "as the test wants it"})


def push(message_id: str = "m", user: str = "u", data: bytes = b"x") -> Push:
    return Push(user, data, message_id)


async def results_of(forwarder: Forwarder, node: Node, pushes: list[Push]) -> list[Result]:
    """Post pushes in batches, as the queue of a node does; return a result for every push."""
    queue = NodeQueue((1,), patience_seconds=10.0)
    for one in pushes:
        queue.put(Message(Envelope(one, 0), PROGRESS, 0))
    results: list[Result] = []
    while queue:
        batch = queue.next_batch(MAX_BATCH_MESSAGES, 0.0).messages
        answer = await forwarder.forward(node, [message.push for message in batch])
        results += [answer] * len(batch) if isinstance(answer, Failure) else answer
    return results


async def outcome_of(forwarder: Forwarder, answer: bytes, *, count: int = 2) -> list[Result]:
    async def give(_: Request) -> bytes:
        return answer

    async with link_server(give) as made:
        return await results_of(forwarder, made.node, [push(f"m{n}") for n in range(count)])


async def outcome_of_upgrade(forwarder: Forwarder, upgrade: bytes) -> Result:
    async with link_server(upgrade=upgrade) as made:
        (found,) = await results_of(forwarder, made.node, [push()])
        assert made.requests == []
        return found


async def test_a_batch_is_a_frame_on_a_link_that_names_the_node_it_is_meant_for(
    forwarder: Forwarder,
) -> None:
    pushes = [Push("u", b"\xff\x00", "m1", "chat", "phone"), push("m2")]
    async with link_server(take_all) as made:
        assert await results_of(forwarder, made.node, pushes) == [1, 1]
    (request,) = made.requests
    assert (request.method, request.path) == ("GET", "/push")
    assert request.headers["host"] == made.node.address
    assert request.headers["authorization"] == f"Pushgate {proof(SECRET, made.node)}"
    assert request.headers["connection"] == "Upgrade"
    assert request.headers["upgrade"] == "pushgate-batch"
    assert (request.headers["pushgate-node"], request.headers["pushgate-epoch"]) == ("gw-a", "e1")
    assert request.pushes == pushes


async def test_no_messages_are_a_question_whether_the_node_answers(forwarder: Forwarder) -> None:
    async with link_server(take_all) as made:
        assert await forwarder.forward(made.node, []) == []
        (request,) = made.requests
        assert request.pushes == []
    assert await forwarder.forward(made.node, []) == UNREACHABLE


async def test_a_message_that_some_connections_took_is_taken_in_part(forwarder: Forwarder) -> None:
    answer = results({"taken": 2, "overloaded": 1}, {"taken": 0, "overloaded": 1})
    assert await outcome_of(forwarder, answer) == [Partly(2), Failure("bad-answer")]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_node_that_refuses_the_secret_is_told_apart(
    forwarder: Forwarder, status: int
) -> None:
    assert await outcome_of_upgrade(forwarder, http(status)) == REFUSED


async def test_each_message_has_its_own_result(forwarder: Forwarder) -> None:
    answer = results(2, 0, {"error": "no-device"}, {"error": "overloaded"}, {"error": "too-large"})
    assert await outcome_of(forwarder, answer, count=5) == [
        2,
        0,
        Failure("no-device"),
        Failure("overloaded"),
        Failure("too-large"),
    ]


async def test_the_connection_is_kept_for_the_next_batch(forwarder: Forwarder) -> None:
    async with link_server(take_all) as made:
        for _ in range(5):
            assert await results_of(forwarder, made.node, [push()]) == [1]
    assert made.connections == 1


# Batches


async def batches_of(forwarder: Forwarder, pushes: list[Push]) -> list[Request]:
    async with link_server(take_all) as made:
        assert await results_of(forwarder, made.node, pushes) == [1] * len(pushes)
    assert [one.id for request in made.requests for one in request.pushes] == [
        one.id for one in pushes
    ]
    return made.requests


@pytest.fixture
async def patient() -> AsyncIterator[Forwarder]:
    made = Forwarder(Reach(GatewayCalls(secret=SECRET)), timeout_seconds=20.0)
    yield made
    await made.close()


@contextmanager
def resetting() -> Iterator[Node]:
    """Reset every connection as soon as it is made, as the kernel does for a killed process."""

    def reset_all() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=reset_all)
        thread.start()
        yield Node("gw-a", "e1", f"127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_a_connection_that_is_reset_as_it_is_made_is_no_answer(patient: Forwarder) -> None:
    """Some 2 % of such connections are closed before this process has looked at them."""
    with resetting() as node:
        answers = {repr(await patient.forward(node, [push()])) for _ in range(400)}
    assert answers == {repr(UNREACHABLE)}


async def test_a_batch_has_at_most_a_thousand_messages(patient: Forwarder) -> None:
    requests = await batches_of(patient, [push(f"m{n}") for n in range(2 * MAX_BATCH_MESSAGES + 1)])
    assert [len(request.pushes) for request in requests] == [1_000, 1_000, 1]


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ADVERSARIAL = {
    "64 KiB payloads": [push(f"m{n}", data=b"x" * 65_536) for n in range(130)],
    "just over 4 KiB": [push(f"m{n}", data=b"x" * 4_200) for n in range(2_100)],
    "big after small": [push(f"m{n}", data=b"x" * (1 if n % 2 else 2_000_000)) for n in range(9)],
    "four megabytes less a bit": [
        push(f"m{n}", data=b"x" * (MAX_BATCH_BYTES - 200)) for n in "abc"
    ],
    "long names": [
        Push("\U0001f600" * 64, b"x" * 3_700, f"{n:04}" + "i" * 276) for n in range(2_000)
    ],
    "long names in every field": [
        Push("\U0001f600" * 64, b"x" * 3_000, f"{n:04}" + "i" * 276, "é" * 64, "d" * 128, "5" * 32)
        for n in range(2_000)
    ],
    "short names in every field": [
        Push("u", b"", f"{n:04}", "t", "d", "5" * 32) for n in range(2_000)
    ],
    "short names and a trace": [
        Push("u", b"x" * 4_100, f"{n:04}", "t", "d", "5" * 32, "push-0-1", traceparent=TRACEPARENT)
        for n in range(2_000)
    ],
    "sizes around each length of a MessagePack head": [
        push(f"m{n}", data=b"x" * (size + n % 3 - 1))
        for n, size in enumerate([32, 256, 65_536] * 150)
    ],
}


@pytest.mark.parametrize("text", ["", "t", "é" * 20, "t" * 40, "t" * 300])
@pytest.mark.parametrize("data", [0, 300, 70_000])
def test_no_push_takes_more_bytes_than_are_reckoned_with(text: str, data: int) -> None:
    topic = text if text.isascii() else "topic"
    for scope in ("5" * 32, 2**62, None):
        most = Push(text, b"x" * data, text, text, text, scope, topic, 2**62, topic)
        least = Push(text, b"x" * data, text, id_scope=scope, timestamp_ms=2**62)
        for one in (most, least):
            assert len(msgspec.msgpack.encode(one)) <= push_size(one)


@pytest.mark.parametrize("name", ADVERSARIAL)
async def test_a_batch_has_at_most_four_mebibytes(patient: Forwarder, name: str) -> None:
    requests = await batches_of(patient, ADVERSARIAL[name])
    assert max(len(request.body) for request in requests) <= MAX_BATCH_BYTES
    assert max(len(request.pushes) for request in requests) <= MAX_BATCH_MESSAGES


async def test_batches_are_not_needlessly_small(patient: Forwarder) -> None:
    requests = await batches_of(patient, [push(f"m{n}", data=b"x" * 65_536) for n in range(128)])
    assert len(requests) <= 3


async def test_a_batch_that_fails_does_not_spoil_the_next(forwarder: Forwarder) -> None:
    async def fail_the_first(request: Request) -> bytes:
        return refused(500) if request.pushes[0].id == "m0" else await take_all(request)

    async with link_server(fail_the_first) as made:
        found = await results_of(forwarder, made.node, [push(f"m{n}") for n in range(1_500)])
    assert found == [Failure("status-500")] * 1_000 + [1] * 500


async def test_a_batch_over_the_limit_is_not_sent_and_ends_no_link(forwarder: Forwarder) -> None:
    async with link_server(take_all) as made:
        huge = push(data=b"x" * MAX_BATCH_BYTES)
        assert await results_of(forwarder, made.node, [push(), huge, push()]) == [
            1,
            Failure("too-large"),
            1,
        ]
        assert made.connections == 1


# Answers


async def test_a_node_that_is_another_has_nobody_of_these(forwarder: Forwarder) -> None:
    assert await outcome_of_upgrade(forwarder, http(421)) == MISDIRECTED


@pytest.mark.parametrize("status", [400, 413, 421, 500, 503])
async def test_a_batch_that_is_refused_fails_under_the_name_of_the_status(
    forwarder: Forwarder, status: int
) -> None:
    assert await outcome_of(forwarder, refused(status)) == [Failure(f"status-{status}")] * 2


@pytest.mark.parametrize("status", [200, 201, 204, 301, 302, 303, 307, 308, 400, 404, 405, 426])
async def test_what_takes_no_link_gets_no_message_and_the_log_says_why(
    forwarder: Forwarder, status: int
) -> None:
    upgrade = http(status, b"", "location: /elsewhere")
    with capture_logs() as logged:
        assert await outcome_of_upgrade(forwarder, upgrade) == NO_LINK
    (said,) = [line for line in logged if line["log_level"] == "error"]
    assert f"status {status}" in said["reason"]
    assert "upgrade gateways before processors" in said["reason"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_node_that_can_take_no_link_now_is_unreachable(
    forwarder: Forwarder, status: int
) -> None:
    assert await outcome_of_upgrade(forwarder, http(status)) == UNREACHABLE


@pytest.mark.parametrize("fields", ["", "Upgrade: websocket", "Upgrade: pushgate-batches"])
async def test_another_protocol_is_no_link(forwarder: Forwarder, fields: str) -> None:
    upgrade = f"HTTP/1.1 101 X\r\nConnection: Upgrade\r\n{fields}\r\n\r\n".encode()
    assert await outcome_of_upgrade(forwarder, upgrade) == NO_LINK


GARBAGE = {
    "nothing": b"",
    "no MessagePack": b"\xc1",
    "half of it": msgspec.msgpack.encode({"results": [1, 1]})[:-1],
    "more than it": msgspec.msgpack.encode({"results": [1, 1]}) + b"\x00",
    "JSON": b'{"results": [1, 1]}',
    "a list": msgspec.msgpack.encode([1, 1]),
    "no results": msgspec.msgpack.encode({"result": [1, 1]}),
    "null": msgspec.msgpack.encode({"results": None}),
    "too few": msgspec.msgpack.encode({"results": [1]}),
    "too many": msgspec.msgpack.encode({"results": [1, 1, 1]}),
    "none": msgspec.msgpack.encode({"results": []}),
    "text": msgspec.msgpack.encode({"results": ["1", "1"]}),
    "booleans": msgspec.msgpack.encode({"results": [True, True]}),
    "fractions": msgspec.msgpack.encode({"results": [1.5, 1.5]}),
    "nested": msgspec.msgpack.encode({"results": [[1], [1]]}),
    "negative": msgspec.msgpack.encode({"results": [-1, -1]}),
    "deep": b"\x81\xa7results" + b"\x91" * 5_000,
    "unknown errors": msgspec.msgpack.encode({"results": [{"error": "x" * 99}, {"error": ""}]}),
    "errors without a name": msgspec.msgpack.encode({"results": [{}, {"reason": "x"}]}),
    "errors that are no text": msgspec.msgpack.encode({"results": [{"error": 1}, {"error": None}]}),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_a_garbled_answer_is_a_failure_and_never_a_delivery(
    forwarder: Forwarder, name: str
) -> None:
    found = await outcome_of(forwarder, GARBAGE[name])
    assert found == [Failure("bad-answer")] * 2


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/2 101 X\r\nUpgrade: pushgate-batch\r\n\r\n",
        b"HTTP/1.1 101 X\r\n" + b"a: b\r\n" * 10_000,
    ],
    ids=lambda answer: str(answer[:20]),
)
async def test_what_is_no_http_is_unreachable(forwarder: Forwarder, answer: bytes) -> None:
    assert await outcome_of_upgrade(forwarder, answer) == UNREACHABLE


# No answer


async def never(_: Request) -> bytes:
    await asyncio.Event().wait()
    return b""


async def test_a_gateway_that_does_not_answer_times_out_in_time(forwarder: Forwarder) -> None:
    async with link_server(never) as made:
        began = time.monotonic()
        assert await results_of(forwarder, made.node, [push()]) == [Failure("timeout")]
        assert TIMEOUT_SECONDS * 0.9 <= time.monotonic() - began < TIMEOUT_SECONDS + 0.5


async def test_a_gateway_that_dribbles_its_answer_times_out_in_time(forwarder: Forwarder) -> None:
    async with dribble() as node:
        began = time.monotonic()
        assert await results_of(forwarder, node, [push()]) == [Failure("timeout")]
        assert time.monotonic() - began < TIMEOUT_SECONDS + 0.5


@asynccontextmanager
async def dribble() -> AsyncIterator[Node]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Each byte comes within every time-out of a single read.
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHING)
        for byte in frame(0, bytes(1_000)):
            writer.write(bytes([byte]))
            await asyncio.sleep(TIMEOUT_SECONDS / 10)

    async with listening(serve) as node:
        yield node


async def test_all_batches_in_flight_to_a_silent_gateway_time_out_in_time(
    forwarder: Forwarder,
) -> None:
    async with link_server(never) as made:
        for _ in range(2):  # without a link, and on a new one
            began = time.monotonic()
            found = await asyncio.gather(
                *(results_of(forwarder, made.node, [push()]) for _ in range(WINDOW))
            )
            assert found == [[Failure("timeout")]] * WINDOW
            assert time.monotonic() - began < TIMEOUT_SECONDS + 0.5


async def test_after_a_time_out_answers_do_not_get_mixed_up(forwarder: Forwarder) -> None:
    timed_out, answered = asyncio.Event(), asyncio.Event()

    async def by_id(request: Request) -> bytes:
        if request.pushes[0].id == "fast":
            return results(1)
        await timed_out.wait()
        answered.set()
        return results(7)

    async with link_server(by_id) as made:
        assert await results_of(forwarder, made.node, [push("slow")]) == [Failure("timeout")]
        timed_out.set()
        await answered.wait()
        for _ in range(3):
            assert await results_of(forwarder, made.node, [push("fast")]) == [1]


async def test_nobody_there_is_unreachable(forwarder: Forwarder) -> None:
    async with link_server(take_all) as made:
        pass
    assert await results_of(forwarder, made.node, [push()] * 2) == [Failure("unreachable")] * 2


async def test_a_kept_connection_that_the_gateway_has_closed_is_no_failure(
    forwarder: Forwarder,
) -> None:
    hung_up: list[str] = []

    async def hang_up_once(request: Request) -> bytes:
        if not hung_up:
            hung_up.append(request.pushes[0].id)
            raise ConnectionError
        return await take_all(request)

    async with link_server(hang_up_once) as made:
        assert await results_of(forwarder, made.node, [push("m")]) == [1]
    assert hung_up == ["m"]


async def test_a_gateway_that_hangs_up_is_unreachable_and_the_next_batch_goes_through(
    forwarder: Forwarder,
) -> None:
    async def hang_up(request: Request) -> bytes:
        if request.pushes[0].id == "first":
            raise ConnectionError
        return await take_all(request)

    async with link_server(hang_up) as made:
        assert await results_of(forwarder, made.node, [push("first")]) == [Failure("unreachable")]
        assert await results_of(forwarder, made.node, [push("second")]) == [1]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "999.999.999.999:80",
        "[::::]:80",
        "[1.2]:80",
        "a..b:80",
        "-:80",
        "xn--a:80",
        f"{'a' * 64}.invalid:80",
        f"{'a.' * 126}b:80",
    ],
)
async def test_an_address_that_nobody_can_have_is_a_failure_and_no_crash(
    forwarder: Forwarder, address: str
) -> None:
    try:
        node = Node("gw-a", "e1", address)
    except ValueError:
        return  # refused where it was read, which is better
    (found,) = await results_of(forwarder, node, [push()])
    assert isinstance(found, Failure)


async def test_a_node_outside_the_networks_gets_no_connection_and_another_does() -> None:
    calls = GatewayCalls(secret=SECRET, allowed=networks("127.0.0.0/8"))
    bounded = Forwarder(Reach(calls), timeout_seconds=TIMEOUT_SECONDS)
    async with link_server(take_all) as inside:
        for epoch, host in (("e1", "10.255.255.1"), ("e2", "[::1]")):
            outside = Node("rogue", epoch, f"{host}:1")
            found = await results_of(bounded, outside, [push(), push("n")])
            assert found == [Failure("outside-networks")] * 2
        assert await results_of(bounded, inside.node, [push()]) == [1]
    await bounded.close()


async def test_a_name_that_means_another_address_after_a_failure_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = GatewayCalls(secret=SECRET, allowed=networks("127.0.0.0/8"))
    bounded = Forwarder(Reach(calls), timeout_seconds=5.0)
    meant = ["127.0.0.2", "127.0.0.1"]

    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (meant.pop(0), 0))]

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", resolve)
    async with link_server(take_all) as made:
        port = made.node.address.rpartition(":")[2]
        named = Node("gw-a", "e1", f"gw-a.example:{port}")
        assert await results_of(bounded, named, [push()]) == [Failure("unreachable")]
        for _ in range(2):
            assert await results_of(bounded, named, [push()]) == [1]
    assert meant == []
    await bounded.close()


async def test_a_proxy_of_the_environment_is_not_asked(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with link_server(take_all) as made:
        assert await results_of(forwarder, made.node, [push()]) == [1]


async def test_a_cancelled_forward_ends_at_once(forwarder: Forwarder) -> None:
    asked = asyncio.Event()

    async def ask_for_ever(request: Request) -> bytes:
        asked.set()
        return await never(request)

    async with link_server(ask_for_ever) as made:
        task = asyncio.create_task(results_of(forwarder, made.node, [push()]))
        await asyncio.wait_for(asked.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_closing_twice_is_harmless() -> None:
    forwarder = Forwarder(Reach(GatewayCalls(secret=SECRET)), timeout_seconds=1.0)
    async with link_server(take_all) as made:
        await results_of(forwarder, made.node, [push()])
        await forwarder.close()
        await forwarder.close()


async def test_links_of_nodes_that_are_gone_are_closed_and_no_other(forwarder: Forwarder) -> None:
    async with link_server(take_all) as kept, link_server(take_all) as gone:
        gone.node = Node("gone", "e1", gone.node.address)
        for made in (kept, gone):
            assert await results_of(forwarder, made.node, [push()]) == [1]
        await forwarder.retain(lambda node: node == kept.node)
        for made in (kept, gone):
            assert await results_of(forwarder, made.node, [push()]) == [1]
        assert (kept.connections, gone.connections) == (1, 2)


async def test_a_forward_under_way_outlives_its_nodes_lease(forwarder: Forwarder) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def take_later(request: Request) -> bytes:
        asked.set()
        await go_on.wait()
        return await take_all(request)

    async with link_server(take_later) as made:
        forwarding = asyncio.create_task(results_of(forwarder, made.node, [push()]))
        await asyncio.wait_for(asked.wait(), 5)
        await forwarder.retain(lambda _: False)
        go_on.set()
        assert await forwarding == [1]
        await forwarder.retain(lambda _: False)
        assert await results_of(forwarder, made.node, [push()]) == [1]
        assert made.connections == 2


async def test_as_many_nodes_as_are_live_keep_their_connections(forwarder: Forwarder) -> None:
    nodes = [Node(f"gone-{number}", "e1", "127.0.0.1:1") for number in range(300)]
    async with link_server(take_all) as kept:
        assert await results_of(forwarder, kept.node, [push()]) == [1]
        for node in nodes:
            assert await results_of(forwarder, node, [push()]) == [Failure("unreachable")]
        assert await results_of(forwarder, kept.node, [push()]) == [1]
        assert kept.connections == 1


async def test_a_new_link_loads_no_certificates(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("21 to 60 ms of the event loop, for plaintext")

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", refuse)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", refuse)
    async with link_server(take_all) as made:
        assert await results_of(forwarder, made.node, [push()]) == [1]
