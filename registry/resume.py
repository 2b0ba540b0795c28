"""The resume link: questions of gateways to processors, so that clients resume.

A processor holds a resume link to a gateway beside the link for batches. A resume link begins with
the same upgrade (frames.py), of another protocol and path, and carries frames with bodies in
MessagePack:

    processor → gateway   Stamp, once a second
    gateway → processor   Ack of a stamp
    gateway → processor   Ask: which messages have users got since their cursors?
    processor → gateway   Answer
    gateway → processor   Receipt, for a processor that reports outcomes

The processor connects, as for batches: no gateway needs a processor's address, and port,
TLS and proof are the gateway's.
"""

from __future__ import annotations

from typing import Final

import msgspec

from registry.message import Push

#: The protocol in the field Upgrade, and the path of the request.
RESUME_PROTOCOL: Final = "pushgate-resume"
RESUME_PATH: Final = "/resume"
#: Bounds of a frame's body. A longer answer is cut, and the rest is asked for.
MAX_ASK_BYTES: Final = 4 * 1024 * 1024
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
#: Bounds of an ask, and of the messages in an answer: for a question, and for all.
MAX_QUESTIONS: Final = 500
MAX_QUESTION_MESSAGES: Final = 1_000
MAX_QUESTION_BYTES: Final = 256 * 1024
MAX_REPLAYED_BYTES: Final = 2 * 1024 * 1024
#: Bound of a receipt: with the longest names of topics, each in a partition of its own, 2.7 MB.
MAX_RECEIPT_MESSAGES: Final = 10_000
#: A question reaches further back than the cursor's time, by so much: times of the registry's clock
#: are known to within a command's time-out, and stamps and marks are seconds apart.
SLACK_MS: Final = 5_000

#: Topic, partition, and an offset there.
Position = tuple[str, int, int]


class Stamp(msgspec.Struct, tag="stamp"):
    """A processor's word: the gateway has answered for all messages settled before `stamp_ms`.

    Of the registry's clock, Unix time in milliseconds. Apart from messages of the users in
    `missed`: the gateway may have missed some; with `missed_more`, of any user. Both are
    said again until a stamp is acknowledged. `resume_seconds` is the processor's setting.
    `receipts` says whether the processor reports outcomes to a topic, and so takes receipts: other
    processors end a link with a receipt on it.
    """

    processor: str
    stamp_ms: int
    resume_seconds: float
    missed: list[str] = []
    missed_more: bool = False
    receipts: bool = False


class Ack(msgspec.Struct, tag="ack"):
    """A gateway's answer to a stamp: the clients of the users in `missed` have been told."""

    stamp_ms: int


class Question(msgspec.Struct, array_like=True):
    """Which messages has a user (or the user's device) got since a cursor?

    In the partitions of `positions`: after the position. In all further partitions: messages not
    settled, or not handed on, before `as_of_ms` by the registry's clock.
    """

    user: str
    device: str | None
    as_of_ms: int
    positions: list[Position]


class Ask(msgspec.Struct, tag="ask"):
    """Questions of a gateway, MAX_QUESTIONS at most; `number` comes back with the answer."""

    number: int
    questions: list[Question]


class Replay(msgspec.Struct, array_like=True):
    """The answer to a question: messages (`push_in`), in order within a partition.

    Partitions are numbers in `Answer.owned`. `cut` has partitions with more messages, from the
    offset on; `incomplete` has partitions with messages not known any more, `void` partitions
    where the question's position is of an earlier topic of the same name.
    """

    messages: list[msgspec.Raw] = []
    cut: dict[int, int] = {}
    incomplete: list[int] = []
    void: list[int] = []


class Answer(msgspec.Struct, tag="answer"):
    """A processor's answer to an ask: a replay for every question.

    `owned` are the partitions of the processor, with offsets: all messages before are in the
    answer; later messages are looked up after the question, and come by themselves. `partitions`
    has the number of partitions of every topic of the setting. `pending` are partitions of the
    processor that can't be answered for yet: ask again.
    """

    number: int
    processor: str
    owned: list[Position]
    partitions: dict[str, int]
    replays: list[Replay]
    pending: list[tuple[str, int]] = []


class Receipt(msgspec.Struct, tag="receipt"):
    """A gateway's word: connections have taken these messages of the processor's answers.

    `taken` has topics, partitions and offsets there, MAX_RECEIPT_MESSAGES offsets at most in all.
    An offset stands there once for each connection.
    """

    taken: list[tuple[str, int, list[int]]]


encode: Final = msgspec.msgpack.Encoder().encode
#: Of an offset, which is below 2⁶³.
_MOST_DIGITS: Final = 19
_decode_gateways: Final = msgspec.msgpack.Decoder(Ask | Ack | Receipt).decode
_decode_word: Final = msgspec.msgpack.Decoder(Stamp | Answer).decode
_decode_push: Final = msgspec.msgpack.Decoder(Push).decode


def gateways_word_in(body: bytes) -> Ask | Ack | Receipt:
    """Return the ask, the acknowledgement or the receipt in a frame's body.

    Raises:
        msgspec.MsgspecError: the body is none of them.
    """
    word: Ask | Ack | Receipt = _decode_gateways(body)
    return word


def word_in(body: bytes) -> Stamp | Answer:
    """Return the stamp or the answer in a frame's body.

    Raises:
        msgspec.MsgspecError: the body is neither.
    """
    word: Stamp | Answer = _decode_word(body)
    return word


def push_in(message: msgspec.Raw) -> Push:
    """Return a message of a replay.

    Raises:
        msgspec.MsgspecError: the message is no push.
    """
    return _decode_push(message)


def position_of(text: str) -> Position | None:
    """Read `topic-partition-offset` (`Push.position`); None for any other text."""
    topic, _, rest = text.rpartition("-")
    topic, _, partition = topic.rpartition("-")
    if not (topic and _is_number(partition) and _is_number(rest)):
        return None
    return topic, int(partition), int(rest)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
