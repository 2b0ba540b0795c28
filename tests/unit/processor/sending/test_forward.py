"""One batch to one gateway over real HTTP: what each answer, and the lack of one, means."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.forward import (
    MISDIRECTED,
    REFUSED,
    UNREACHABLE,
    Failure,
    Forwarder,
    Partly,
    Result,
)
from processor.sending.node_queue import NodeQueue
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.message import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, Envelope, Push
from registry.networks import networks
from registry.proof import proof

pytestmark = pytest.mark.anyio

SECRET = "internal secret of tests"
TIMEOUT_SECONDS = 0.3
PROGRESS = Progress(TopicPartition("push", 0), lane=0)


class Request:
    """What a gateway got."""

    def __init__(self, head: bytes, body: bytes) -> None:
        request_line, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = request_line.split(" ")
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self.body = body
        self.pushes = msgspec.msgpack.decode(body, type=list[Push]) if body else []


Answer = Callable[[Request], Awaitable[bytes]]


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def results(*found: object) -> bytes:
    return http(200, msgspec.msgpack.encode({"results": list(found)}))


async def take_all(request: Request) -> bytes:
    return results(*[1] * len(request.pushes))


class Gateway:
    """A small HTTP/1.1 server that remembers what it was sent."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.node = Node("gw-a", "e1", "127.0.0.1:1")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await self._head(reader):
                length = int(Request(head, b"").headers.get("content-length", "0"))
                request = Request(head, await reader.readexactly(length))
                self.requests.append(request)
                writer.write(await self.answer(request))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""


@asynccontextmanager
async def gateway(answer: Answer) -> AsyncIterator[Gateway]:
    made = Gateway(answer)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    made.node = Node("gw-a", "e1", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield made
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@pytest.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    made = Forwarder(Reach(GatewayCalls(secret=SECRET)), timeout_seconds=TIMEOUT_SECONDS)
    yield made
    await made.close()


def push(message_id: str = "m", user: str = "u", data: bytes = b"x") -> Push:
    return Push(user, data, message_id)


async def results_of(forwarder: Forwarder, node: Node, pushes: list[Push]) -> list[Result]:
    """Post pushes in batches, as the queue of a node does; return a result for every push."""
    queue = NodeQueue((1,), patience_seconds=10.0)
    for one in pushes:
        queue.put(Message(Envelope(one, 0), PROGRESS, 0))
    results: list[Result] = []
    while queue:
        batch = queue.next_batch(MAX_BATCH_MESSAGES, 0.0)
        answer = await forwarder.forward(node, [message.push for message in batch])
        results += [answer] * len(batch) if isinstance(answer, Failure) else answer
    return results


async def outcome_of(forwarder: Forwarder, answer: bytes, *, count: int = 2) -> list[Result]:
    async def give(_: Request) -> bytes:
        return answer

    async with gateway(give) as made:
        return await results_of(forwarder, made.node, [push(f"m{n}") for n in range(count)])


async def test_a_batch_is_one_post_that_names_the_node_it_is_meant_for(
    forwarder: Forwarder,
) -> None:
    pushes = [Push("u", b"\xff\x00", "m1", "chat", "phone"), push("m2")]
    async with gateway(take_all) as made:
        assert await results_of(forwarder, made.node, pushes) == [1, 1]
    (request,) = made.requests
    assert (request.method, request.path) == ("POST", "/push")
    assert request.headers["authorization"] == f"Pushgate {proof(SECRET, made.node)}"
    assert request.headers["content-type"] == "application/msgpack"
    assert (request.headers["pushgate-node"], request.headers["pushgate-epoch"]) == ("gw-a", "e1")
    assert request.pushes == pushes


async def test_no_messages_are_a_question_whether_the_node_answers(forwarder: Forwarder) -> None:
    async with gateway(take_all) as made:
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
    assert await outcome_of(forwarder, http(status)) == [REFUSED] * 2


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
    async with gateway(take_all) as made:
        for _ in range(5):
            assert await results_of(forwarder, made.node, [push()]) == [1]
    assert made.connections == 1


# Batches


async def batches_of(forwarder: Forwarder, pushes: list[Push]) -> list[Request]:
    async with gateway(take_all) as made:
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


async def test_a_batch_has_at_most_a_thousand_messages(patient: Forwarder) -> None:
    requests = await batches_of(patient, [push(f"m{n}") for n in range(2 * MAX_BATCH_MESSAGES + 1)])
    assert [len(request.pushes) for request in requests] == [1_000, 1_000, 1]


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
    "sizes around each length of a MessagePack head": [
        push(f"m{n}", data=b"x" * (size + n % 3 - 1))
        for n, size in enumerate([32, 256, 65_536] * 150)
    ],
}


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
        return http(503) if request.pushes[0].id == "m0" else await take_all(request)

    async with gateway(fail_the_first) as made:
        found = await results_of(forwarder, made.node, [push(f"m{n}") for n in range(1_500)])
    assert found == [Failure("status-503")] * 1_000 + [1] * 500


# Answers


async def test_a_node_that_is_another_has_nobody_of_these(forwarder: Forwarder) -> None:
    assert await outcome_of(forwarder, http(421)) == [MISDIRECTED] * 2


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 502, 503, 204, 201])
async def test_any_other_status_is_a_failure_under_its_name(
    forwarder: Forwarder, status: int
) -> None:
    answer = http(status) if status != 204 else b"HTTP/1.1 204 X\r\n\r\n"
    assert await outcome_of(forwarder, answer) == [Failure(f"status-{status}")] * 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/elsewhere", "http://127.0.0.1:1/", "http://[", "\x00"])
async def test_a_redirect_is_not_followed(forwarder: Forwarder, status: int, location: str) -> None:
    async def redirect(_: Request) -> bytes:
        return http(status, b"", f"location: {location}")

    async with gateway(redirect) as made:
        (found,) = await results_of(forwarder, made.node, [push()])
    assert isinstance(found, Failure)
    assert {request.path for request in made.requests} == {"/push"}


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
    found = await outcome_of(forwarder, http(200, GARBAGE[name]))
    assert found == [Failure("bad-answer")] * 2


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        http(200, b"\x1f\x8b garbage", "content-encoding: gzip"),
    ],
)
async def test_what_is_no_http_is_a_failure(forwarder: Forwarder, answer: bytes) -> None:
    found = await outcome_of(forwarder, answer)
    assert all(isinstance(result, Failure) for result in found)


# No answer


async def never(_: Request) -> bytes:
    await asyncio.Event().wait()
    return b""


async def test_a_gateway_that_does_not_answer_times_out_in_time(forwarder: Forwarder) -> None:
    async with gateway(never) as made:
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
    stop = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Each byte comes within every time-out of a single read.
        for byte in http(200, b"x" * 1_000):
            if stop.is_set() or writer.is_closing():
                break
            writer.write(bytes([byte]))
            try:
                await asyncio.wait_for(stop.wait(), TIMEOUT_SECONDS / 10)
            except TimeoutError:
                continue
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Node("gw-a", "e1", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        stop.set()
        server.close()
        await server.wait_closed()


async def test_many_batches_at_once_to_a_silent_gateway_all_time_out_in_time(
    forwarder: Forwarder,
) -> None:
    async with gateway(never) as made:
        began = time.monotonic()
        found = await asyncio.gather(
            *(results_of(forwarder, made.node, [push()]) for _ in range(20))
        )
        assert found == [[Failure("timeout")]] * 20
        assert time.monotonic() - began < TIMEOUT_SECONDS + 1.0


async def test_after_a_time_out_answers_do_not_get_mixed_up(forwarder: Forwarder) -> None:
    timed_out, answered = asyncio.Event(), asyncio.Event()

    async def by_id(request: Request) -> bytes:
        if request.pushes[0].id == "fast":
            return results(1)
        await timed_out.wait()
        answered.set()
        return results(7)

    async with gateway(by_id) as made:
        assert await results_of(forwarder, made.node, [push("slow")]) == [Failure("timeout")]
        timed_out.set()
        await answered.wait()
        for _ in range(3):
            assert await results_of(forwarder, made.node, [push("fast")]) == [1]


async def test_nobody_there_is_unreachable(forwarder: Forwarder) -> None:
    async with gateway(take_all) as made:
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

    async with gateway(hang_up_once) as made:
        assert await results_of(forwarder, made.node, [push("m")]) == [1]
    assert hung_up == ["m"]


async def test_a_gateway_that_hangs_up_is_unreachable_and_the_next_batch_goes_through(
    forwarder: Forwarder,
) -> None:
    async def hang_up(request: Request) -> bytes:
        if request.pushes[0].id == "first":
            raise ConnectionError
        return await take_all(request)

    async with gateway(hang_up) as made:
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
    async with gateway(take_all) as inside:
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
    async with gateway(take_all) as made:
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
    async with gateway(take_all) as made:
        assert await results_of(forwarder, made.node, [push()]) == [1]


async def test_a_cancelled_forward_ends_at_once(forwarder: Forwarder) -> None:
    asked = asyncio.Event()

    async def ask_for_ever(request: Request) -> bytes:
        asked.set()
        return await never(request)

    async with gateway(ask_for_ever) as made:
        task = asyncio.create_task(results_of(forwarder, made.node, [push()]))
        await asyncio.wait_for(asked.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_closing_twice_is_harmless() -> None:
    forwarder = Forwarder(Reach(GatewayCalls(secret=SECRET)), timeout_seconds=1.0)
    async with gateway(take_all) as made:
        await results_of(forwarder, made.node, [push()])
        await forwarder.close()
        await forwarder.close()


async def test_clients_of_nodes_that_are_gone_are_closed_and_no_other(forwarder: Forwarder) -> None:
    async with gateway(take_all) as kept, gateway(take_all) as gone:
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

    async with gateway(take_later) as made:
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
    async with gateway(take_all) as kept:
        assert await results_of(forwarder, kept.node, [push()]) == [1]
        for node in nodes:
            assert await results_of(forwarder, node, [push()]) == [Failure("unreachable")]
        assert await results_of(forwarder, kept.node, [push()]) == [1]
        assert kept.connections == 1


async def test_a_new_client_loads_no_certificates(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("21 to 60 ms of the event loop, for plaintext")

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", refuse)
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", refuse)
    async with gateway(take_all) as made:
        assert await results_of(forwarder, made.node, [push()]) == [1]
