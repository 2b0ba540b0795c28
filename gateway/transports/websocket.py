"""WebSocket (RFC 6455): the handshake's answer, frames out, frames in."""

from __future__ import annotations

import enum
import logging
import random
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from types import GeneratorType
from typing import ClassVar, Final, cast

from websockets.frames import Close as CloseFrame
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol
from websockets.protocol import State as ProtocolState
from websockets.streams import StreamReader
from websockets.utils import accept_key

from gateway.closes import Close
from gateway.connection import (
    CLOSE_GRACE_SECONDS,
    Bounds,
    Identity,
    Keeper,
    State,
    StreamConnection,
)
from gateway.delivery import Delivery, Form, json_form

PLAIN: Final = "pushgate.plain"
V1: Final = "pushgate.v1"
BEARER_PREFIX: Final = "bearer."

_PING: Final = Frame(Opcode.PING, b"").serialize(mask=False)
_SILENT = logging.getLogger("gateway.websocket")
_SILENT.setLevel(logging.CRITICAL)


class BadHandshake(Exception):
    """Not a WebSocket opening handshake (§4.2.1); `status` is what to answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def answer_handshake(
    headers: Mapping[str, str], offered: Iterable[str]
) -> tuple[bytes, str | None]:
    """Return the 101 head and the subprotocol it selects.

    Raises:
        BadHandshake: the request is no opening handshake of version 13.
    """
    connection = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in connection:
        raise BadHandshake(426, "connect with a WebSocket client")
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
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(key)}",
    ]
    if subprotocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return "\r\n".join([*lines, "", ""]).encode("ascii"), subprotocol


def plain_frame(delivery: Delivery) -> bytes:
    """One frame holding the payload alone."""
    opcode = Opcode.BINARY if delivery.text is None else Opcode.TEXT
    return Frame(opcode, delivery.payload).serialize(mask=False)


def v1_frame(delivery: Delivery) -> bytes:
    """One text frame holding the JSON object of `pushgate.v1`."""
    return Frame(Opcode.TEXT, delivery.encoded(json_form)).serialize(mask=False)


class Ping(enum.Enum):
    """How it stands with the heartbeat."""

    NONE = "none is due an answer"
    SENT = "sent; nothing was heard since"
    ANSWERED = "something was heard since"


class WebSocketConnection(StreamConnection):
    """A WebSocket after its handshake."""

    __slots__ = ("_bounds", "_form", "_parser", "_ping")
    transport: ClassVar[str] = "websocket"

    def __init__(
        self, identity: Identity, keeper: Keeper, *, subprotocol: str | None, bounds: Bounds
    ) -> None:
        super().__init__(identity, keeper)
        self._form: Form = v1_frame if subprotocol == V1 else plain_frame
        self._bounds = bounds
        self._parser: Protocol | None = None
        self._ping = Ping.NONE

    def deliver(self, delivery: Delivery) -> bool:
        """Send one message as one frame."""
        return self.write(delivery.encoded(self._form))

    def received(self, data: bytes) -> None:
        """Take inbound bytes; nearly always the answer to a ping."""
        if self._ping is Ping.SENT:
            self._ping = Ping.ANSWERED  # whatever it is, the peer is there
        if self._parser is None:
            if len(data) == 6 and data[:2] == b"\x8a\x80":  # an empty masked Pong and no more
                return
            self._parser = Protocol(
                SERVER,
                state=ProtocolState.OPEN,
                max_size=self._bounds.inbound_bytes,
                logger=_SILENT,
            )
        self._parse(self._parser, data)

    def _parse(self, parser: Protocol, data: bytes) -> None:
        parser.receive_data(data)
        parser.events_received()  # what clients send means nothing here
        answer = b"".join(parser.data_to_send())
        if parser.state is ProtocolState.OPEN:
            if answer:
                self.write(answer)
            if _between_frames(parser):
                self._parser = None
        elif parser.close_rcvd is not None:
            self.ended("client left", answer)
        else:
            self.ended("protocol error", answer)

    def opened(self) -> None:
        """Start the heartbeat, out of step with others that opened with this one."""
        interval = self._bounds.heartbeat_seconds
        self._keeper.wake_at(self, interval * random.uniform(0.5, 1.0))  # noqa: S311

    def wake(self) -> None:
        """Ping, or look for the answer; end a peer that has left either frame unanswered."""
        if self.state is not State.OPEN or self._ping is Ping.SENT:
            self.abort("no answer")
        elif self._ping is Ping.NONE:
            self._ping = Ping.SENT
            self.write(_PING)
            self._keeper.wake_at(self, self._bounds.heartbeat_timeout_seconds)
        else:
            self._ping = Ping.NONE
            bounds = self._bounds
            rest = max(0.0, bounds.heartbeat_seconds - bounds.heartbeat_timeout_seconds)
            self._keeper.wake_at(self, rest)

    def say_goodbye(self, close: Close) -> None:
        """Send a Close frame and give the client a moment: it should close first."""
        if self._wire is not None:
            frame = Frame(Opcode.CLOSE, CloseFrame(close.code, close.reason).serialize())
            self._wire.write(frame.serialize(mask=False))
            self._keeper.wake_at(self, CLOSE_GRACE_SECONDS)


def _between_frames(parser: Protocol) -> bool:
    """Whether nothing is under way in `parser`, so that it can be let go of.

    At a frame's start the parser waits in `StreamReader.at_eof`, elsewhere in the frame's own
    generator; `current_size` is the size so far of a message in fragments.
    """
    waiting_in = cast("GeneratorType[None, None, None]", parser.parser).gi_yieldfrom
    return (
        parser.current_size is None
        and isinstance(waiting_in, GeneratorType)
        and waiting_in.gi_code is StreamReader.at_eof.__code__
    )
