"""WebSocket (RFC 6455): the answer to the opening handshake, frames out, frames in."""

from __future__ import annotations

import random
import struct
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import ClassVar, Final, Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp
from websockets.frames import Close as CloseFrame
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from gateway import metrics
from gateway.connections.closes import CLOSE_GRACE_SECONDS, Close
from gateway.connections.connection import NO_CURSOR, Keeper, State, StreamConnection, Unrefreshed
from gateway.connections.delivery import Delivery, cursor_form
from gateway.connections.identity import Identity
from gateway.entry.entry import Entry
from gateway.errors import GatewayError
from gateway.http.head import Head, asks_for
from gateway.http.responses import END_HEAD, field_lines, start_head
from gateway.takeover.format import Held, Stream, WebSocketRecord
from gateway.transports.inbound import Inbound

#: The subprotocol whose frames hold payloads alone, which is also spoken without a subprotocol.
PLAIN: Final = "pushgate.plain"
#: The subprotocol whose frames hold JSON objects, with controls for the client library.
V1: Final = "pushgate.v1"

#: A subprotocol that is no protocol: the cursor of a client that comes back.
_CURSOR_PREFIX: Final = "cursor."
#: Browsers always ask to upgrade: a page sees this answer only where a proxy is in between.
_NO_UPGRADE: Final = (
    "no upgrade to WebSocket has arrived: a proxy on the way may have taken the Upgrade field away"
)
_SWITCHING: Final = start_head(101, {"Upgrade": "websocket", "Connection": "Upgrade"})
_PING: Final = Frame(Opcode.PING, b"").serialize(mask=False)
#: The first bytes of whole messages: FIN and the opcode, as plain integers. To look up an enum's
#: member and to compute with it takes longer than the rest of a frame.
_TEXT: Final = 0x80 | Opcode.TEXT.value
_BINARY: Final = 0x80 | Opcode.BINARY.value
#: Headers of unmasked frames with 16 and with 64 bits for the payload's length (§5.2).
_MEDIUM: Final = struct.Struct("!BBH")
_LONG: Final = struct.Struct("!BBQ")
_encode = msgspec.json.Encoder().encode


class BadHandshake(GatewayError):
    """A request is no WebSocket opening handshake (§4.2.1); it is answered with `status`."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


async def connect(head: Head, entry: Entry) -> ASGIApp:
    """Answer `GET /ws`: hold the request's socket as a WebSocket, or refuse the request."""
    offered = head.subprotocols
    admitted = await entry.admit(head, offered)
    try:
        answer, subprotocol = answer_handshake(head.fields, offered)
    except BadHandshake as bad:
        headers = {"upgrade": "websocket", "sec-websocket-version": "13", **admitted.cors}
        raise HTTPException(bad.status, bad.detail, headers) from bad
    connection = WebSocketConnection(admitted.identity, entry.node, subprotocol=subprotocol)
    if subprotocol == V1:
        resumes = entry.resume(connection, _cursor_text(head, offered))
        answer += hello(entry.node.bounds.heartbeat_seconds, entry.node.cursor(connection))
        if not resumes:
            metrics.GAPS.inc()
            answer += connection.gap_notice()
    return entry.hold(connection, admitted, answer)


def _cursor_text(head: Head, offered: Iterable[str]) -> str | None:
    """Return the cursor that a client comes back with, in its subprotocols or in the query.

    Browsers allow no comma in a subprotocol: `~` stands for it.
    """
    for name in offered:
        if name.startswith(_CURSOR_PREFIX):
            return name.removeprefix(_CURSOR_PREFIX).replace("~", ",")
    return head.query.get("cursor")


def answer_handshake(
    headers: Mapping[str, str], offered: Iterable[str]
) -> tuple[bytes, str | None]:
    """Return the head of the 101 response, and the subprotocol that the response selects.

    `offered` are subprotocols in the client's order. None is selected where none is known here.

    Raises:
        BadHandshake: the request is no opening handshake of version 13.
    """
    if not asks_for(headers, "websocket"):
        raise BadHandshake(426, _NO_UPGRADE)
    if headers.get("sec-websocket-version") != "13":
        raise BadHandshake(426, "WebSocket version 13 is spoken here")
    key = headers.get("sec-websocket-key", "")
    try:
        right_length = len(b64decode(key, validate=True)) == 16
    except (Base64Error, ValueError):
        right_length = False
    if not right_length:
        raise BadHandshake(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    subprotocol = next((name for name in offered if name in (PLAIN, V1)), None)
    fields = {"Sec-WebSocket-Accept": accept_key(key)}
    if subprotocol is not None:
        fields["Sec-WebSocket-Protocol"] = subprotocol
    return b"".join((_SWITCHING, field_lines(fields), END_HEAD)), subprotocol


def plain_frame(delivery: Delivery) -> bytes:
    """Encode a message as one frame with the payload alone: text, or binary where not UTF-8."""
    return _frame(_BINARY if delivery.text is None else _TEXT, delivery.payload)


def v1_frame(delivery: Delivery) -> bytes:
    """Encode a message as one text frame with the JSON object of `pushgate.v1`."""
    return _frame(_TEXT, cursor_form(delivery))


def _frame(first_byte: int, payload: bytes) -> bytes:
    """Encode one message as one unmasked frame (§5.2), by the frame's first byte.

    websockets' Frame.serialize is not used: it takes 1.1 µs, a third of the time that sending takes
    beside the kernel.
    """
    size = len(payload)
    if size < 126:
        return bytes((first_byte, size)) + payload
    if size < 1 << 16:
        return _MEDIUM.pack(first_byte, 126, size) + payload
    return _LONG.pack(first_byte, 127, size) + payload


def control_frame(control: str, **fields: object) -> bytes:
    """Encode a control of `pushgate.v1`: one text frame for the client library.

    The JSON object has `control` and the fields, and no `data`.
    """
    return _frame(_TEXT, _encode({"control": control, **fields}))


def hello(heartbeat_seconds: float, cursor: str = "") -> bytes:
    """Encode the first frame of `pushgate.v1`, with the interval of the heartbeats that follow."""
    interval_ms = round(heartbeat_seconds * 1_000)
    return control_frame("hello", **_cursor_field(cursor), heartbeat_ms=interval_ms)


@lru_cache(maxsize=16)  # most connections have the node's cursor, which changes once a second
def v1_heartbeat(cursor: str = "") -> bytes:
    """Encode a heartbeat of `pushgate.v1` in one write.

    The Ping is for the peer's WebSocket to answer, and a web page sees the control frame alone.
    """
    return _PING + control_frame("heartbeat", **_cursor_field(cursor))


def _cursor_field(cursor: str) -> dict[str, str]:
    return {"cursor": cursor} if cursor else {}


#: The state of the Pings between the answer to a Ping and the next Ping. Otherwise the state is the
#: number of Pings since the client's last bytes.
_ANSWERED: Final = -1


class _Refresh(msgspec.Struct):
    """The only message that means something from a `pushgate.v1` client: a new token."""

    control: Literal["refresh"]  # not msgspec's tag: msgspec accepts an object without its tag
    token: str


_decode_refresh = msgspec.json.Decoder(_Refresh).decode


class WebSocketConnection(StreamConnection):
    """The connection of a WebSocket client, from the answer to the opening handshake on."""

    __slots__ = ("_frames", "_inbound", "_pings", "form")
    transport: ClassVar[str] = "websocket"

    def __init__(self, identity: Identity, keeper: Keeper, *, subprotocol: str | None) -> None:
        super().__init__(identity, keeper)
        self.form = v1_frame if subprotocol == V1 else plain_frame
        if subprotocol != V1:
            self.cursor = NO_CURSOR
        self._inbound: Inbound | None = None
        # Frames of the client since the last heartbeat, without the frames that `_inbound` counts.
        self._frames = 0
        self._pings = 0  # unanswered, or _ANSWERED

    def stream_record(self, held: Held, stream: Stream) -> WebSocketRecord:
        """Return the record of the connection, with a message that has arrived in part."""
        inbound = self._inbound
        return WebSocketRecord(
            held,
            stream,
            self.form is v1_frame,
            self._pings,
            self._frames,
            b"" if inbound is None else inbound.begun(),
            0 if inbound is None else inbound.frames,
        )

    @classmethod
    def from_record(
        cls, record: WebSocketRecord, identity: Identity, keeper: Keeper
    ) -> WebSocketConnection:
        """Return the connection that an earlier process has captured, without its socket."""
        connection = cls(identity, keeper, subprotocol=V1 if record.v1 else PLAIN)
        connection._pings, connection._frames = record.pings, record.frames
        if record.begun:
            connection._inbound = inbound = Inbound(max_bytes=keeper.bounds.inbound_bytes)
            for _ in inbound.messages(record.begun, max_frames=record.begun_frames + 1):
                pass  # nothing of it is a whole message
            inbound.frames = record.begun_frames
        return connection

    def received(self, data: bytes) -> None:
        """Take inbound bytes: nearly always the Pong to a Ping, which needs no parser."""
        if self._pings:
            self._pings = _ANSWERED  # all bytes count: the peer is there
        if self._inbound is None:
            if len(data) == 6 and data[:2] == b"\x8a\x80":  # an empty masked Pong and no more
                self._frames += 1
                if self._frames <= self._keeper.bounds.inbound_frames:
                    return
            self._inbound = Inbound(max_bytes=self._keeper.bounds.inbound_bytes)
        self._parse(self._inbound, data)

    def _parse(self, inbound: Inbound, data: bytes) -> None:
        frames_left = self._keeper.bounds.inbound_frames - self._frames
        for message in inbound.messages(data, max_frames=frames_left):
            # Pongs go out before the message is answered: the Pings came first. A Close waits for
            # the end, because no frame may follow a Close (§5.5.1).
            if inbound.open and (pongs := inbound.answer()):
                self.write_control(pongs)
            if self.state in (State.OPEN, State.PARTING):
                self.said(message)
        answer, end_reason = inbound.answer(), inbound.end
        if end_reason is not None:
            self._inbound = None  # an incomplete message would wait through the close grace
            self.ended(end_reason, answer)
            return
        if answer:
            self.write_control(answer)
        if inbound.between_messages:
            self._frames += inbound.frames
            self._inbound = None

    def said(self, message: str | bytes) -> None:
        """Take one whole message: a new token in `pushgate.v1`; every other message is ignored."""
        if self.form is not v1_frame or isinstance(message, bytes):
            return
        try:
            token = _decode_refresh(message).token
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return
        try:
            seconds = self._keeper.refresh(self, token)
        except Unrefreshed as refused:
            self.write_control(control_frame("refused", reason=str(refused)))
        else:
            self.write_control(control_frame("refreshed", expires_in_ms=int(seconds * 1_000)))

    def opened(self) -> None:
        """Start the heartbeat, out of step with connections that opened at the same time."""
        interval = self._keeper.bounds.heartbeat_seconds
        self._keeper.wake_at(self, interval * random.uniform(0.5, 1.0))  # noqa: S311

    def wake(self) -> None:
        """Send a heartbeat, or look for the answer to a Ping.

        A peer that has left a Ping or a Close unanswered is cut off. A time-out above a heartbeat's
        interval counts in heartbeats. While a backlog waits, the backlog is the sign of life
        (slowness.py): a Ping would wait behind the backlog, and the client might read slowly, and
        answer too late.
        """
        bounds = self._keeper.bounds
        check_seconds = min(bounds.heartbeat_seconds, bounds.heartbeat_timeout_seconds)
        until_ping = bounds.heartbeat_seconds - check_seconds
        if self.state is State.CLOSING:
            self.abort("no answer")
        elif self.wire is not None and self.wire.waits():
            self._pings = 0
            self._begin_interval()
            self._keeper.wake_at(self, bounds.heartbeat_seconds)
        elif self._pings * check_seconds >= bounds.heartbeat_timeout_seconds:
            self.abort("no answer")
        elif self._pings == _ANSWERED and until_ping:
            self._pings = 0
            self._keeper.wake_at(self, until_ping)
        else:
            self._pings = max(self._pings, 0) + 1
            self._begin_interval()
            is_v1 = self.form is v1_frame
            self.write_control(v1_heartbeat(self._keeper.cursor(self)) if is_v1 else _PING)
            self._keeper.wake_at(self, check_seconds)

    def _begin_interval(self) -> None:
        """Count the client's frames afresh: their limit is for one heartbeat's interval."""
        self._frames = 0
        if self._inbound is not None:
            self._inbound.frames = 0

    def warn(self, seconds: float) -> None:
        """Ask a `pushgate.v1` client for a new token: the last expires in `seconds`."""
        if self.form is v1_frame:
            self.write_control(control_frame("expiring", in_ms=int(seconds * 1_000)))

    def understands_reconnect(self) -> bool:
        """Whether the client speaks `pushgate.v1`: plain clients understand only a Close frame."""
        return self.form is v1_frame

    def tell_to_reconnect(self, close: Close, delay_seconds: float) -> None:
        """Send the control frame `reconnect`."""
        cursor = _cursor_field(self._keeper.cursor(self))
        after_ms = int(delay_seconds * 1_000)
        self.write_control(control_frame("reconnect", after_ms=after_ms, code=close.code, **cursor))

    def gap_notice(self) -> bytes:
        """Return the control frame `gap` for a `pushgate.v1` client; nothing for a plain client."""
        return control_frame("gap") if self.form is v1_frame else b""

    def say_goodbye(self, close: Close) -> None:
        """Send a Close frame, and give the client a moment: the client should close first."""
        if self.wire is not None:
            frame = Frame(Opcode.CLOSE, CloseFrame(close.code, close.reason).serialize())
            self.wire.write_control(frame.serialize(mask=False))
            self._keeper.wake_at(self, CLOSE_GRACE_SECONDS)
