"""From a WebSocket client's bytes to whole messages (RFC 6455 §5 and §8.1)."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator
from types import GeneratorType
from typing import Final, cast

from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol, State
from websockets.streams import StreamReader

from gateway.connections.closes import BAD_TEXT, CLOSES, PROTOCOL_ERROR, TOO_MANY_FRAMES

#: Bytes that are parsed at once. The limit on frames is checked after every piece, so a flood of
#: empty frames is recognised before parsing takes long.
_PIECE_BYTES: Final = 2_048
_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
#: Bytes of an extended payload length, by the 7 bits before it, and the least length that needs so
#: many bytes (§5.2).
_EXTENDED_BYTES: Final = {126: 2, 127: 8}
_LEAST_LENGTHS: Final = {2: 126, 8: 1 << 16}
#: Reasons by close code.
_REASONS: Final = {close.code: close.reason for close in CLOSES}
#: The logger of the parser; silent, because the parser logs what clients send.
_SILENT = logging.getLogger("gateway.websocket")
_SILENT.setLevel(logging.CRITICAL)


class Inbound:
    """A parser of one client's frames, made when bytes arrive and dropped between messages.

    An idle connection therefore has no parser. The library websockets parses frames, and refuses
    messages of more than `max_bytes`. This class joins the fragments of a message, and checks text
    as the fragments arrive. `frames` counts the parsed frames; the connection sets it back to 0 at
    every heartbeat.
    """

    __slots__ = ("_heads", "_kept", "_opcode", "_parser", "_text", "frames")

    def __init__(self, *, max_bytes: int) -> None:
        self.frames = 0
        self._parser = _Parser(SERVER, state=State.OPEN, max_size=max_bytes, logger=_SILENT)
        self._heads = _FrameHeads()
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._opcode = Opcode.CONT  # of the message, from its first frame
        self._kept = bytearray()  # the payload of an incomplete message

    def messages(self, data: bytes, *, max_frames: int) -> Iterator[str | bytes]:
        """Take inbound bytes; yield every whole message, text as str and binary as bytes.

        The connection ends with TOO_MANY_FRAMES when `frames` exceeds `max_frames`. Once the
        connection has ended (see `end`), no further bytes are parsed.
        """
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            end_of_bad = self._heads.end_of_bad_length(piece)
            self._parser.receive_data(piece[:end_of_bad])
            for event in self._parser.events_received():
                self.frames += 1
                if isinstance(event, Frame) and event.opcode in _DATA:
                    yield from self._message(event)
                if self.end == BAD_TEXT.reason:
                    return  # RFC 6455 §7.1.7: no data behind the bad text is processed
            if self.open and self.frames > max_frames:
                self._parser.fail(TOO_MANY_FRAMES.code, TOO_MANY_FRAMES.reason)
            if self.open and end_of_bad is not None:
                self._parser.fail(PROTOCOL_ERROR.code, PROTOCOL_ERROR.reason)
            if not self.open:
                return

    @property
    def open(self) -> bool:
        """Whether the connection goes on: neither side has sent a Close frame."""
        return self._parser.state is State.OPEN

    @property
    def end(self) -> str | None:
        """The reason why the connection has ended; None while the connection is open."""
        if self.open:
            return None
        sent, received = self._parser.close_sent, self._parser.close_rcvd
        if received is not None and sent == received:
            return "client left"
        return _REASONS.get(sent.code if sent else PROTOCOL_ERROR.code, PROTOCOL_ERROR.reason)

    @property
    def between_messages(self) -> bool:
        """Whether no frame or message is incomplete, so that the parser can be dropped.

        websockets has no property for that. Between frames its parser, a generator, waits in
        `StreamReader.at_eof`, and within a frame in a generator of the frame. `current_size` is
        the size so far of a fragmented message, and None between messages.
        """
        waiting_in = cast("GeneratorType[None, None, None]", self._parser.parser).gi_yieldfrom
        return (
            self._parser.current_size is None
            and isinstance(waiting_in, GeneratorType)
            and waiting_in.gi_code is StreamReader.at_eof.__code__
        )

    def begun(self) -> bytes:
        """Return bytes that bring a new parser to where this one is, in the middle of a message.

        The fragments that have arrived become one frame; the incomplete frame follows as it came.
        Of that frame `buffer` of websockets' reader has the payload so far.
        """
        fragments = b""
        if self._parser.current_size is not None:
            frame = Frame(self._opcode, bytes(self._kept), fin=False)
            fragments = frame.serialize(mask=True)
        return fragments + self._heads.begun(bytes(self._parser.reader.buffer))

    def answer(self) -> bytes:
        """Return the frames that are due to the client: Pongs, or a Close."""
        return b"".join(self._parser.data_to_send())

    def _message(self, frame: Frame) -> Iterator[str | bytes]:
        """Add a data frame to its message; yield the message if the frame is the last."""
        if frame.opcode is not Opcode.CONT:
            self._opcode = frame.opcode
        if self._opcode is Opcode.TEXT:
            try:
                # Checked now, but kept as bytes: a fragment may end within a character.
                self._text.decode(frame.data, final=frame.fin)
            except UnicodeDecodeError:
                if self.open:
                    self._parser.fail(BAD_TEXT.code, BAD_TEXT.reason)
                return
        self._kept += frame.data
        if frame.fin:
            payload, self._kept = bytes(self._kept), bytearray()
            yield payload.decode() if self._opcode is Opcode.TEXT else payload


class _Parser(Protocol):
    """The parser of websockets, which also takes a Close between the fragments of a message.

    Control frames may stand there (§5.4), and a Close ends the message with the connection. The
    library calls such a Close a protocol error.
    """

    def recv_frame(self, frame: Frame) -> None:
        """Take a frame; a Close ends the incomplete message before it."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class _FrameHeads:
    """Follows the heads of frames through inbound bytes, to find lengths that are not minimal.

    A payload's length has to be encoded in as few bytes as possible (§5.2). The parser of
    websockets takes longer encodings too.
    """

    __slots__ = ("_begun", "_head", "_head_left", "_payload_left")

    def __init__(self) -> None:
        self._begun = b""  # the part of an incomplete head that has arrived
        self._payload_left = 0  # bytes of the present frame that are still to come
        #: The head of the present frame, as far as it has arrived, and how many bytes of the mask,
        #: the head's end, are still to come.
        self._head = b""
        self._head_left = 0

    def begun(self, payload: bytes) -> bytes:
        """Return the incomplete frame, of whose payload so much has arrived; empty for none."""
        if not self._payload_left:
            return self._begun
        return self._head if self._head_left else self._head + payload

    def end_of_bad_length(self, data: bytes) -> int | None:
        """Take inbound bytes; return the position in `data` behind a length that is not minimal.

        None where there is no bad length. Behind a bad length, no frame is followed any more.
        """
        if self._head_left:
            self._head += data[: self._head_left]
            self._head_left = max(0, self._head_left - len(data))
        begun, data = len(self._begun), self._begun + data
        position = self._payload_left
        while len(data) - position >= 2:
            length = data[position + 1] & 0x7F
            extended_bytes = _EXTENDED_BYTES.get(length, 0)
            end = position + 2 + extended_bytes
            if len(data) < end:
                break
            if extended_bytes:
                length = int.from_bytes(data[position + 2 : end])
                if length < _LEAST_LENGTHS[extended_bytes]:
                    return end - begun
            mask_bytes = 4 if data[position + 1] & 0x80 else 0
            self._head = data[position : end + mask_bytes]
            self._head_left = max(0, end + mask_bytes - len(data))
            position = end + mask_bytes + length
        self._begun = data[position:]
        self._payload_left = max(0, position - len(data))
        return None
