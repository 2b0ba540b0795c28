"""Raw, strict clients of the three transports: what is on the wire, byte for byte.

They speak HTTP and WebSocket by themselves, so that nothing of a library hides a byte that should
not be there, and fail on anything that the protocol does not promise.
"""

import asyncio
import base64
import hashlib
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self, cast

import httpx
import msgspec

from pushgate.embedded import LOOPBACK
from pushgate.token import mint
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET

TRANSPORTS: Final = ("ws-plain", "ws-v1", "sse", "poll")
SECONDS: Final = 5.0
"""How long a test waits for what should come at once."""

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_POLL_SECONDS: Final = 0.02


async def eventually(
    condition: Callable[[], Any], what: str, *, timeout_seconds: float = SECONDS
) -> None:
    """Return once `condition`, maybe a coroutine function, is true; else fail with `what`."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"not within {timeout_seconds:g} s: {what}"
        await asyncio.sleep(_POLL_SECONDS)


def token(
    user: str, *, device: str | None = None, secret: str = JWT_SECRET, ttl_seconds: int = 600
) -> str:
    """Mint a token; it is good for ten minutes if nothing else is said."""
    return mint(user, secret, ttl_seconds=ttl_seconds, device=device)


def bearer(user: str, *, device: str | None = None, ttl_seconds: int = 600) -> dict[str, str]:
    """Give the header that speaks for `user`."""
    return {"Authorization": f"Bearer {token(user, device=device, ttl_seconds=ttl_seconds)}"}


Control = dict[str, Any]
"""A control frame or event: its name under `control`, and its fields."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a client got; `id`, `type` and `cursor` are None where the transport has none."""

    id: str | None
    type: str | None
    payload: bytes
    raw: bytes
    binary: bool = False
    cursor: str | None = None


class Ended(Exception):
    """The gateway ended the connection; `code` is the WebSocket's, None elsewhere."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(f"ended: {code} {reason}")
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response. `headers` has lower-case names, none of them twice."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        """The body, which says that it is JSON."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class Wire:
    """A TCP connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, *, receive_buffer_bytes: int | None = None) -> Self:
        """Connect; a small receive buffer makes a client that does not read felt early."""
        plug = socket.socket()
        if receive_buffer_bytes is not None:
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        plug.setblocking(False)
        try:
            async with asyncio.timeout(SECONDS):
                await asyncio.get_running_loop().sock_connect(plug, (LOOPBACK, port))
            limit = receive_buffer_bytes or 1 << 24
            return cls(*await asyncio.open_connection(sock=plug, limit=limit))
        except BaseException:
            plug.close()
            raise

    async def send(self, data: bytes) -> None:
        """Send bytes, in one segment where they fit."""
        self._writer.write(data)
        await self._writer.drain()

    async def exactly(self, count: int, timeout: float = SECONDS) -> bytes:
        """Read `count` bytes; Ended where the stream does."""
        return await self._bounded(self._reader.readexactly(count), timeout)

    async def until(self, separator: bytes, timeout: float = SECONDS) -> bytes:
        """Read up to and with `separator`; Ended where the stream does."""
        return await self._bounded(self._reader.readuntil(separator), timeout)

    async def rest(self, timeout: float = SECONDS) -> bytes:
        """Read to the end of the stream."""
        async with asyncio.timeout(timeout):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    async def answer(self, timeout: float = SECONDS, *, bodiless: bool = False) -> Answer:
        """Read a response; its body too, where it has a length or the end of the stream ends it."""
        head = (await self.until(b"\r\n\r\n", timeout)).decode("latin-1")
        status_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value.strip()
        if bodiless or int(status) in (101, 204, 304):
            return Answer(version, int(status), headers)
        if "content-length" in headers:
            body = await self.exactly(int(headers["content-length"]), timeout)
        elif headers.get("transfer-encoding") == "chunked":
            body = await self._chunks(timeout)
        else:
            body = await self.rest(timeout)
        return Answer(version, int(status), headers, body)

    async def ended(self, timeout: float = SECONDS) -> None:
        """Return when the stream ends, and fail when anything comes before."""
        assert await self.rest(timeout) == b""

    async def close(self) -> None:
        """Close without a word. Harmless when repeated."""
        self._writer.transport.abort()
        try:
            await self._writer.wait_closed()
        except OSError:
            return

    async def _chunks(self, timeout: float) -> bytes:
        body = b""
        while size := int(await self.until(b"\r\n", timeout), 16):
            body += await self.exactly(size, timeout)
            assert await self.exactly(2, timeout) == b"\r\n"
        assert await self.exactly(2, timeout) == b"\r\n"
        return body

    async def _bounded(self, reading: Any, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                data: bytes = await reading
                return data
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Ended from error


@asynccontextmanager
async def wire_to(port: int, *, receive_buffer_bytes: int | None = None) -> AsyncIterator[Wire]:
    """Connect, and close whatever happens."""
    wire = await Wire.open(port, receive_buffer_bytes=receive_buffer_bytes)
    try:
        yield wire
    finally:
        await wire.close()


def head(
    method: str, target: str, headers: Mapping[str, str] | None = None, *, version: str = "1.1"
) -> bytes:
    """Spell a request's head."""
    lines = [f"{method} {target} HTTP/{version}"]
    fields = {"Host": LOOPBACK, **(headers or {})}
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def request(
    port: int,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    *,
    body: bytes = b"",
    version: str = "1.1",
) -> Answer:
    """Ask once over a connection of its own; the answer must come and be whole."""
    async with wire_to(port) as wire:
        await wire.send(head(method, target, headers, version=version) + body)
        return await wire.answer(bodiless=method == "HEAD")


def upgrade_headers(key: str | None = None) -> dict[str, str]:
    """Give the headers of an opening handshake (RFC 6455 §4.1) but for its credential."""
    return {
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key or base64.b64encode(os.urandom(16)).decode(),
    }


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True) -> bytes:
    """Spell a client's frame (§5.2)."""
    first = (0x80 if fin else 0) | opcode
    masked = 0x80 if mask else 0
    if len(payload) < 126:
        start = struct.pack("!BB", first, masked | len(payload))
    elif len(payload) < 1 << 16:
        start = struct.pack("!BBH", first, masked | 126, len(payload))
    else:
        start = struct.pack("!BBQ", first, masked | 127, len(payload))
    if not mask:
        return start + payload
    key = os.urandom(4)
    return start + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def close_frame(code: int, reason: str = "") -> bytes:
    """Spell a client's Close frame (§5.5.1)."""
    return frame(CLOSE, struct.pack("!H", code) + reason.encode())


class Client(Protocol):
    """One client of any transport."""

    wire: Wire
    answer: Answer

    async def message(self, timeout: float = SECONDS) -> Message:
        """Give the next message; Ended where the gateway ends the connection."""

    async def ended(self, timeout: float = SECONDS) -> Ended:
        """Return how the gateway ended the connection; no message may come before."""


@dataclass
class WebSocketClient:
    """A WebSocket after its handshake."""

    wire: Wire
    answer: Answer
    answers_pings: bool = True
    pings: int = 0
    heartbeat_ms: int | None = None
    heartbeats: int = 0
    cursor: str | None = None
    """How far this client has come, as the gateway said last."""
    pongs: list[bytes] = field(default_factory=list)

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the gateway selected."""
        return self.answer.headers.get("sec-websocket-protocol")

    async def frame(self, timeout: float = SECONDS) -> tuple[int, bytes, bytes]:
        """Give the next frame's opcode, payload and bytes. It is whole, unmasked and minimal."""
        start = await self.wire.exactly(2, timeout)
        first, second = start
        assert first & 0x80, "the gateway never fragments"
        assert not first & 0x70, "no extension was negotiated"
        assert not second & 0x80, "servers don't mask"
        size, extended = second, b""
        if second == 126:
            extended = await self.wire.exactly(2, timeout)
            (size,) = struct.unpack("!H", extended)
            assert size >= 126, "the length is minimal (§5.2)"
        elif second == 127:
            extended = await self.wire.exactly(8, timeout)
            (size,) = struct.unpack("!Q", extended)
            assert size >= 1 << 16, "the length is minimal (§5.2)"
        payload = await self.wire.exactly(size, timeout)
        return first & 0x0F, payload, start + extended + payload

    async def message(self, timeout: float = SECONDS) -> Message:
        """Give the next message; answer pings and skip controls on the way."""
        deadline = time.monotonic() + timeout
        while not isinstance(found := await self.next(deadline - time.monotonic()), Message):
            pass
        return found

    async def control(self, timeout: float = SECONDS) -> Control:
        """Give the next control frame; no message may come before."""
        found = await self.next(timeout)
        assert not isinstance(found, Message), f"a message came: {found}"
        return found

    async def next(self, timeout: float = SECONDS) -> Message | Control:
        """Give the next message or control frame but for heartbeats; answer pings on the way."""
        deadline = time.monotonic() + timeout
        while True:
            opcode, payload, raw = await self.frame(max(0.0, deadline - time.monotonic()))
            if opcode == PING:
                self.pings += 1
                if self.answers_pings:
                    await self.wire.send(frame(PONG, payload))
            elif opcode == PONG:
                self.pongs.append(payload)
            elif opcode == CLOSE:
                raise _close(payload)
            elif self.subprotocol == "pushgate.v1":
                assert opcode == TEXT
                form = json.loads(payload)
                self.cursor = form.get("cursor", self.cursor)
                if "control" not in form:
                    assert self.heartbeat_ms is not None, "a message came before the hello"
                    return _from_json(form, raw)
                assert "data" not in form
                if not self._beats(form):
                    return cast("Control", form)
            else:
                assert opcode in (TEXT, BINARY)
                if opcode == TEXT:
                    payload.decode()
                return Message(None, None, payload, raw, opcode == BINARY)

    def _beats(self, form: Control) -> bool:
        """Note a hello, which comes first and once, or a heartbeat; say whether it is one."""
        if form["control"] not in ("hello", "heartbeat"):
            return False
        assert (form["control"] == "hello") is (self.heartbeat_ms is None)
        if form["control"] == "hello":
            assert form.keys() - {"cursor"} == {"control", "heartbeat_ms"}
            self.heartbeat_ms = form["heartbeat_ms"]
        else:
            assert form.keys() - {"cursor"} == {"control"}
            self.heartbeats += 1
        return True

    async def ended(self, timeout: float = SECONDS) -> Ended:
        """Answer the gateway's Close frame, if one comes, and see the stream end."""
        try:
            message = await self.message(timeout)
        except Ended as ended:
            if ended.code is not None:
                await self.wire.send(close_frame(ended.code))
                await self.wire.ended(timeout)
            return ended
        raise AssertionError(f"a message came: {message}")


@dataclass
class SseClient:
    """An event stream after its head."""

    wire: Wire
    answer: Answer
    heartbeat_ms: int | None = None
    heartbeats: int = 0
    last_event_id: str | None = None
    """What a browser would send as Last-Event-ID."""
    retry_ms: int | None = None

    async def message(self, timeout: float = SECONDS) -> Message:
        """Give the next event that is a message."""
        deadline = time.monotonic() + timeout
        while not isinstance(found := await self.next(deadline - time.monotonic()), Message):
            pass
        return found

    async def control(self, timeout: float = SECONDS) -> Control:
        """Give the next control event; no message may come before."""
        found = await self.next(timeout)
        assert not isinstance(found, Message), f"a message came: {found}"
        return found

    async def next(self, timeout: float = SECONDS) -> Message | Control:
        """Give the next message or control event but for heartbeats."""
        deadline = time.monotonic() + timeout
        while True:
            block = await self.wire.until(b"\n\n", max(0.0, deadline - time.monotonic()))
            fields = self._fields(block)
            if "id" in fields:
                assert (b"\n" + block).index(b"\ndata:") < (b"\n" + block).index(b"\nid:"), (
                    "a cut event moves no id"
                )
                self.last_event_id = fields["id"].decode()
            event = fields["event"].decode() if "event" in fields else None
            if event == "pushgate.cursor":
                self._beat(fields)
                continue
            assert self.heartbeat_ms is not None, "the stream begins with a heartbeat's event"
            if event == "pushgate.binary":
                return _from_json(json.loads(fields["data"]), block)
            if event is not None and event.startswith("pushgate."):
                assert "id" not in fields, "control events carry no id"
                form = json.loads(fields["data"])
                return {"control": event.removeprefix("pushgate."), **form}
            cursor, _, message_id = fields["id"].decode().rpartition(" ")
            return Message(message_id, event, fields["data"], block, cursor=cursor or None)

    def _beat(self, fields: Mapping[str, bytes]) -> None:
        assert fields.keys() - {"id"} == {"event", "data"}
        if self.heartbeat_ms is None:
            self.heartbeat_ms = int(fields["data"])
        else:
            assert int(fields["data"]) == self.heartbeat_ms
            self.heartbeats += 1

    async def ended(self, timeout: float = SECONDS) -> Ended:
        """See the stream end."""
        try:
            message = await self.message(timeout)
        except Ended as ended:
            return ended
        raise AssertionError(f"a message came: {message}")

    def _fields(self, block: bytes) -> dict[str, bytes]:
        """Read one block as the HTML standard does (§9.2.6), of the fields we send alone."""
        assert b"\r" not in block, "lines end in LF"
        fields: dict[str, bytes] = {}
        for line in block.removesuffix(b"\n\n").split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data" and "data" in fields:
                fields["data"] += b"\n" + value
            else:
                assert name in (b"id", b"event", b"data", b"retry"), f"no field of ours: {line!r}"
                assert name.decode() not in fields, f"{name!r} is there twice"
                fields[name.decode()] = value
        if "retry" in fields:
            self.retry_ms = int(fields["retry"])
        return fields


@dataclass
class PollClient:
    """A long-poll session over one connection that is kept alive."""

    wire: Wire
    answer: Answer
    credential: dict[str, str]
    cursor: str = ""
    gaps: int = 0
    parked: bool = False
    waiting: deque[Message] = field(default_factory=deque)

    async def open(self, *, wait: float = 0) -> Self:
        """Poll, by default with a short poll; without a cursor this opens a session."""
        await self.send(wait=wait)
        self.answer = await self.take(SECONDS + wait)
        return self

    async def send(self, *, wait: float, cursor: str | None = None) -> None:
        """Ask, and leave the answer to `take`."""
        query = f"wait={wait:g}"
        if cursor or self.cursor:
            query += f"&cursor={cursor or self.cursor}"
        await self.wire.send(head("GET", f"/poll?{query}", self.credential))
        self.parked = True

    async def take(self, timeout: float = SECONDS) -> Answer:
        """Read an answer; its messages wait for `message`."""
        answer = await self.wire.answer(timeout)
        self.parked = False
        if answer.status != 200:
            raise Ended(None, f"status {answer.status}")
        form = answer.json
        assert form.keys() - {"gap"} == {"cursor", "messages"}
        assert form.get("gap", True) is True
        self.gaps += "gap" in form
        self.cursor = form["cursor"]
        self.waiting += [_from_json(element, answer.body) for element in form["messages"]]
        return answer

    async def message(self, timeout: float = SECONDS) -> Message:
        """Give the next message, polling for it."""
        deadline = time.monotonic() + timeout
        while not self.waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if not self.parked:
                await self.send(wait=left)
            await self.take(left + 1.0)
        return self.waiting.popleft()

    async def ended(self, timeout: float = SECONDS) -> Ended:
        """See a parked poll answered with nothing, and then no poll taken any more."""
        try:
            if not self.parked:
                await self.send(wait=2 * timeout)
            await self.take(timeout)
            assert not self.waiting, f"messages came: {self.waiting}"
            await self.send(wait=0)
            await self.take(timeout)
        except Ended as ended:
            return ended
        raise AssertionError("the session lives on")


def _close(payload: bytes) -> Ended:
    if not payload:
        return Ended(1005)
    (code,) = struct.unpack("!H", payload[:2])
    return Ended(code, payload[2:].decode())


def _from_json(form: dict[str, Any], raw: bytes) -> Message:
    assert form.keys() - {"encoding", "cursor"} == {"id", "type", "data"}
    cursor = form.get("cursor")
    assert isinstance(form["id"], str)
    assert isinstance(form["data"], str)
    if "encoding" not in form:
        return Message(form["id"], form["type"], form["data"].encode(), raw, cursor=cursor)
    assert form["encoding"] == "base64"
    payload = base64.b64decode(form["data"], validate=True)
    return Message(form["id"], form["type"], payload, raw, binary=True, cursor=cursor)


@asynccontextmanager
async def connect(
    transport: str,
    port: int,
    user: str,
    *,
    device: str | None = None,
    answers_pings: bool = True,
    receive_buffer_bytes: int | None = None,
    ttl_seconds: int = 600,
    cursor: str | None = None,
    wait: float = 0,
) -> AsyncIterator[Client]:
    """Connect as `user`; by long-poll, poll once, for `wait` seconds. `cursor` resumes."""
    async with wire_to(port, receive_buffer_bytes=receive_buffer_bytes) as wire:
        credential = bearer(user, device=device, ttl_seconds=ttl_seconds)
        client: Client
        if transport == "sse":
            last_id = {} if cursor is None else {"Last-Event-ID": cursor}
            client = await open_sse(wire, {**credential, **last_id})
        elif transport == "poll":
            poll = PollClient(wire, Answer("", 0, {}), credential, cursor or "")
            client = await poll.open(wait=wait)
        else:
            subprotocol = "pushgate.v1" if transport == "ws-v1" else None
            if subprotocol and cursor is not None:
                subprotocol += f", cursor.{cursor.replace(',', '~')}"
            client = await open_websocket(wire, credential, subprotocol=subprotocol)
            client.answers_pings = answers_pings
        yield client


async def open_sse(wire: Wire, headers: Mapping[str, str], target: str = "/sse") -> SseClient:
    """Ask for an event stream; it must be one."""
    await wire.send(head("GET", target, {"Accept": "text/event-stream", **headers}))
    answer = await wire.answer(bodiless=True)
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers
    return SseClient(wire, answer)


async def open_websocket(
    wire: Wire,
    headers: Mapping[str, str],
    *,
    subprotocol: str | None = None,
    target: str = "/ws",
    follow: bytes = b"",
) -> WebSocketClient:
    """Shake hands; `follow` is sent in the same segment as the request."""
    fields = upgrade_headers()
    if subprotocol is not None:
        fields["Sec-WebSocket-Protocol"] = subprotocol
    await wire.send(head("GET", target, {**fields, **headers}) + follow)
    answer = await wire.answer()
    assert answer.status == 101, answer
    assert answer.headers["upgrade"].lower() == "websocket"
    assert answer.headers["connection"].lower() == "upgrade"
    digest = hashlib.sha1(fields["Sec-WebSocket-Key"].encode() + _GUID, usedforsecurity=False)
    assert answer.headers["sec-websocket-accept"] == base64.b64encode(digest.digest()).decode()
    assert "sec-websocket-extensions" not in answer.headers
    return WebSocketClient(wire, answer)


class Pusher:
    """Pushes through a gateway's internal listener."""

    def __init__(self, port: int) -> None:
        """`port` is the internal listener's."""
        self.http = httpx.AsyncClient(
            base_url=f"http://{LOOPBACK}:{port}",
            headers={"Authorization": f"Bearer {INTERNAL_SECRET}"},
            timeout=10.0,
            trust_env=False,
        )

    async def push(self, messages: Sequence[Mapping[str, object]], *, packed: bool = False) -> Any:
        """POST a batch as JSON or MessagePack; give its results."""
        media_type = "application/msgpack" if packed else "application/json"
        content = (msgspec.msgpack if packed else msgspec.json).encode(messages)
        response = await self.http.post(
            "/push", content=content, headers={"Content-Type": media_type}
        )
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == media_type
        decode = msgspec.msgpack.decode if packed else msgspec.json.decode
        answer = decode(response.content)
        assert answer.keys() == {"results"}
        return answer["results"]

    async def push_one(self, user: str, payload: bytes, **fields: str) -> None:
        """Push one payload to one user, who must get it."""
        results = await self.push([{"user": user, "data": payload, **fields}], packed=True)
        assert results == [1], results

    async def connections(self) -> int:
        """Give how many connections the gateway holds."""
        return await self._sum_of("pushgate_gateway_connections{")

    async def opened(self) -> int:
        """Give how many connections the gateway has had."""
        return await self._sum_of("pushgate_gateway_connections_opened_total{")

    async def _sum_of(self, prefix: str) -> int:
        text = (await self.http.get("/metrics")).text
        return sum(int(float(x.split()[-1])) for x in text.splitlines() if x.startswith(prefix))


@asynccontextmanager
async def pusher_to(port: int) -> AsyncIterator[Pusher]:
    """Push through the internal listener on `port`."""
    pusher = Pusher(port)
    async with pusher.http:
        yield pusher
