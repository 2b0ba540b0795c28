"""The messages from one gateway process to the next, as MessagePack.

The next version has to read the messages of this version: fields are added with a default, and
never change in meaning. Otherwise FORMAT grows, and readers keep the formats before.
tests/unit/gateway/takeover/recorded has messages of all formats.

Times are durations, since the clocks of two processes need not agree: seconds, or ticks of the
node's clock (connections/sweep.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

#: The format that this version writes.
FORMAT: Final = 1
#: The formats that this version reads.
FORMATS: Final = (1,)

#: Topic, partition, offset.
Place = tuple[str, int, int]


class Record(msgspec.Struct, omit_defaults=True):
    """The base of records and messages."""


class Waiting(Record):
    """A live message that waits behind a gate."""

    payload: bytes
    id: str
    position: str
    type: str | None = None
    timestamp_ms: int | None = None
    lane: str | None = None
    as_of: str = ""


class GateRecord(Record, tag="gate"):
    """A gate (connections/gate.py): from the client's positions on, everything is asked anew."""

    as_of_ms: int
    positions: list[Place] = []
    has_gap: bool = False
    waiting: list[Waiting] = []


class ReplayedRecord(Record, tag="replayed"):
    """The screen of a client that has resumed: `ends` and `positions` by partition."""

    ends: list[Place] = []
    positions: list[Place] = []


class Held(Record):
    """The common part of all connections.

    `parting_reason` is the reason of the close where the client was told to reconnect, else None.
    Ticks are counted from now, None for never. `replaced` says whether a new
    connection has taken the place of one that parts, None where no place is kept.
    """

    user: str
    device: str | None = None
    parting_reason: str | None = None
    held_since_ms: int = 0
    cursor: str | None = None
    wake_ticks: int | None = None
    age_ticks: int | None = None
    expiry_ticks: int | None = None
    warned: bool = False
    address: str | None = None
    replaced: bool | None = None
    screen: GateRecord | ReplayedRecord | None = None


class Unsent(Record):
    """The writes that wait in a wire.

    Of a first write that has `begun`, `writes` has the rest. `controls` are the positions of the
    transport's own bytes in `writes`; the rest are messages.
    """

    writes: list[bytes] = []
    controls: list[int] = []
    begun: bool = False


class Stalled(Record):
    """For how long a client has taken no byte, and the wire's progress since then."""

    seconds: float
    progress: int | None = None


class Stream(Record):
    """The common part of held sockets."""

    unsent: Unsent | None = None
    stalled: Stalled | None = None


class WebSocketRecord(Record, tag="websocket"):
    """A held WebSocket.

    `begun` are bytes after which a new parser is in the same state, within a message.
    """

    held: Held
    stream: Stream
    v1: bool = False
    pings: int = 0
    frames: int = 0
    begun: bytes = b""
    begun_frames: int = 0


class SseRecord(Record, tag="sse"):
    """A held event stream."""

    held: Held
    stream: Stream


class ParkedRecord(Record):
    """A parked poll, which goes with the socket of the request."""

    wait_seconds: float
    cors_lines: bytes = b""
    last: bool = False
    early: bytes = b""
    client: tuple[str, int] | None = None


class PollRecord(Record, tag="poll"):
    """A poll session, with a parked poll or without."""

    held: Held
    key: str
    number: int
    items: list[bytes] = []
    acknowledged: int = 0
    answered: int = 0
    positions: list[Place] = []
    ahead: list[Place] = []
    as_of: str = ""
    since: str = ""
    positions_at: str = ""
    moves: bool = False
    is_full: bool = False
    parked: ParkedRecord | None = None


class HttpRecord(Record, tag="http"):
    """A socket of the public port between two requests."""

    client: tuple[str, int] | None = None
    stays: bool = False
    unused: bool = False
    awaits_proxy_header: bool = False


ConnectionRecord = WebSocketRecord | SseRecord | PollRecord | HttpRecord


class PartlyTakenRecord(Record):
    """A partly taken message: the name, and the takers by number in the take-over."""

    user: str
    id: str
    device: str | None
    scope: str | int | None
    takers: list[int]


class DrainRecord(Record):
    """A drain (connections/drain.py); the times are seconds from now."""

    settled_in: float
    ends_in: float
    all_told_in: float
    longest_delay: float
    rate: float
    told_clients: int


class Hello(Record, tag="hello"):
    """The greeting of the next process: formats for reading, and room for connections."""

    formats: list[int]
    room: int
    version: str = ""


class Refusal(Record, tag="refusal"):
    """The running process stays; `reason` is for the log."""

    reason: str


class Welcome(Record, tag="welcome"):
    """The node. With two descriptors: the internal and the public listening socket."""

    format: int
    name: str
    epoch: str
    address: str
    users: list[str]
    lease_age_seconds: float | None = None
    as_of_ms: int = 0
    generation: int = 0
    poll_names: str = ""
    handshakes: float = 0.0
    drain: DrainRecord | None = None
    markers: list[bytes] = []
    evicted: dict[bytes, bytes] = {}


class Ready(Record, tag="ready"):
    """The next process is made, and takes connections now."""


class Connections(Record, tag="connections"):
    """A batch of connections: all of some users, or a part of one user's; with descriptors.

    A poll session without a parked poll has none. `unwritten` are users whose entry in the registry
    is still to be written.
    """

    records: list[ConnectionRecord]
    unwritten: list[str] = []
    partly_taken: list[PartlyTakenRecord] = []
    captured_at: float = 0.0


class Taken(Record, tag="taken"):
    """The oldest unacknowledged batch is adopted."""


class NotTaken(Record, tag="not-taken"):
    """The oldest unacknowledged batch is not adopted, and none of the sockets was touched."""

    reason: str


class Push(Record, tag="push"):
    """A batch of messages for the reader's users."""

    number: int
    body: bytes


class Pushed(Record, tag="pushed"):
    """The results of a batch; None where the batch failed."""

    number: int
    body: bytes | None


class Switch(Record, tag="switch"):
    """The reader is to accept: everything is there. With the window of repeats.

    The window has 64-bit hashes and results, as arrays of the machine; `hash_check` tells
    whether the reader hashes alike. `remaining` are users with connections to be drained,
    `unwritten` users with an entry in the registry to be written or removed.
    """

    unwritten: list[str] = []
    remaining: list[str] = []
    hash_check: int = 0
    young: tuple[bytes, bytes] = (b"", b"")
    old: tuple[bytes, bytes] = (b"", b"")


class Switched(Record, tag="switched"):
    """The reader's partner accepts, and answers processors."""


class Ended(Record, tag="ended"):
    """A user of `Switch.remaining` has no connection there any more."""

    user: str


class Alive(Record, tag="alive"):
    """The earlier process is there."""


class Done(Record, tag="done"):
    """The goodbye of the earlier process; the answer is the same: the next process is the node."""

    longest_pause_seconds: float = 0.0


Message = (
    Hello
    | Refusal
    | Welcome
    | Ready
    | Connections
    | Taken
    | NotTaken
    | Push
    | Pushed
    | Switch
    | Switched
    | Ended
    | Alive
    | Done
)

encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final[Callable[[bytes], Message]] = msgspec.msgpack.Decoder(Message).decode


def decode(body: bytes) -> Message:
    """Return the message of a frame's body.

    Raises:
        msgspec.DecodeError: the body is no message of FORMATS.
    """
    return _decode(body)
