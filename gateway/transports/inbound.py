"""What a WebSocket client sends: bytes to whole messages (RFC 6455 §5 and §8.1)."""

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

#: What is parsed at once: a flood of empty frames is seen to be one before it takes long.
_PIECE_BYTES: Final = 2_048
_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_REASONS: Final = {close.code: close.reason for close in CLOSES}
_SILENT = logging.getLogger("gateway.websocket")
_SILENT.setLevel(logging.CRITICAL)


class Inbound:
    """A parser that is made when bytes come and let go of between messages.

    Frames are websockets' to parse, kept in bounds by `max_bytes` a message. Their messages are
    put together here, and text is checked as it comes.
    """

    __slots__ = ("_kept", "_opcode", "_parser", "_text", "frames")

    def __init__(self, *, max_bytes: int) -> None:
        self.frames = 0
        self._parser = Protocol(SERVER, state=State.OPEN, max_size=max_bytes, logger=_SILENT)
        self._text = codecs.getincrementaldecoder("utf-8")()
        self._opcode = Opcode.CONT
        self._kept = bytearray()

    def messages(self, data: bytes, *, max_frames: int) -> Iterator[str | bytes]:
        """Take bytes; yield each message that is whole. At most `max_frames` frames are taken."""
        for start in range(0, len(data), _PIECE_BYTES):
            self._parser.receive_data(data[start : start + _PIECE_BYTES])
            for event in self._parser.events_received():
                self.frames += 1
                if isinstance(event, Frame) and event.opcode in _DATA:
                    yield from self._message(event)
                if self.end == BAD_TEXT.reason:
                    return  # RFC 6455 §7.1.7: nothing behind it is read
            if self.open and self.frames > max_frames:
                self._parser.fail(TOO_MANY_FRAMES.code, TOO_MANY_FRAMES.reason)
            if not self.open:
                return

    @property
    def open(self) -> bool:
        """Whether nothing has ended the connection."""
        return self._parser.state is State.OPEN

    @property
    def end(self) -> str | None:
        """Why it has ended, None where it has not."""
        if self.open:
            return None
        sent, received = self._parser.close_sent, self._parser.close_rcvd
        if received is not None and sent == received:
            return "client left"
        return _REASONS.get(sent.code if sent else PROTOCOL_ERROR.code, PROTOCOL_ERROR.reason)

    @property
    def between_messages(self) -> bool:
        """Whether nothing is under way, so that this can be let go of.

        At a frame's start the parser waits in `StreamReader.at_eof`, elsewhere in the frame's own
        generator; `current_size` is the size so far of a message in fragments.
        """
        waiting_in = cast("GeneratorType[None, None, None]", self._parser.parser).gi_yieldfrom
        return (
            self._parser.current_size is None
            and isinstance(waiting_in, GeneratorType)
            and waiting_in.gi_code is StreamReader.at_eof.__code__
        )

    def answer(self) -> bytes:
        """Return the Pongs, or the Close, that are due."""
        return b"".join(self._parser.data_to_send())

    def _message(self, frame: Frame) -> Iterator[str | bytes]:
        if frame.opcode is not Opcode.CONT:
            self._opcode = frame.opcode
        if self._opcode is Opcode.TEXT:
            try:
                # Checked now, kept as bytes: a character may be cut by a fragment's end.
                self._text.decode(frame.data, final=frame.fin)
            except UnicodeDecodeError:
                if self.open:
                    self._parser.fail(BAD_TEXT.code, BAD_TEXT.reason)
                return
        self._kept += frame.data
        if frame.fin:
            whole, self._kept = bytes(self._kept), bytearray()
            yield whole.decode() if self._opcode is Opcode.TEXT else whole
