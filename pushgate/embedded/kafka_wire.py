"""Kafka's requests and answers as bytes: of the few requests that the embedded broker looks into.

Newer versions of a request have the flexible form (KIP-482): lengths are varints, one more than the
length (0 for null), and tagged fields may follow a structure.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

#: Requests by their API key (Kafka protocol guide).
PRODUCE: Final = 0
LIST_OFFSETS: Final = 2
METADATA: Final = 3
FIND_COORDINATOR: Final = 10
API_VERSIONS: Final = 18
INIT_PRODUCER_ID: Final = 22
ADD_PARTITIONS_TO_TXN: Final = 24
END_TXN: Final = 26
#: From which version on a request has the flexible form.
_FLEXIBLE: Final = {PRODUCE: 9, LIST_OFFSETS: 6, METADATA: 9, INIT_PRODUCER_ID: 2}
_NEVER: Final = 1 << 15

INT16: Final = struct.Struct(">h")
INT32: Final = struct.Struct(">i")
INT64: Final = struct.Struct(">q")
_HEAD: Final = struct.Struct(">hhi")


class Head(NamedTuple):
    """What each request begins with."""

    api_key: int
    version: int
    correlation: int

    @classmethod
    def of(cls, request: bytes) -> Head:
        """Read the head; struct.error where there is none."""
        return cls(*_HEAD.unpack_from(request))

    @property
    def is_flexible(self) -> bool:
        """Whether the request, and its answer, have the flexible form."""
        return self.version >= _FLEXIBLE.get(self.api_key, _NEVER)

    def request(self, body: bytes = b"") -> bytes:
        """Return a request without a client id."""
        return _HEAD.pack(*self) + INT16.pack(-1) + (b"\0" if self.is_flexible else b"") + body


class Reader:
    """Reads fields from left to right; struct.error or IndexError where the bytes end.

    `at` is the place of the next field.
    """

    def __init__(self, frame: bytes, *, flexible: bool, at: int = 0) -> None:
        self._frame = frame
        self._flexible = flexible
        self.at = at

    @classmethod
    def of_body(cls, request: bytes, head: Head) -> Reader:
        """Return a reader that stands behind a request's head and client id."""
        reader = cls(request, flexible=False, at=_HEAD.size)
        reader.text()
        reader._flexible = head.is_flexible
        reader.skip_tags()
        return reader

    def number(self, form: struct.Struct) -> int:
        """Read a number."""
        (number,) = form.unpack_from(self._frame, self.at)
        self.at += form.size
        return int(number)

    def raw(self, size: int) -> bytes:
        """Read bytes without a length."""
        self.at += size
        return self._frame[self.at - size : self.at]

    def text(self) -> bytes:
        """Read a string, as it is encoded; null is empty."""
        return self.raw(self._length(INT16))

    def data(self) -> bytes:
        """Read bytes with their length; null is empty."""
        return self.raw(self._length(INT32))

    def count(self) -> int:
        """Read the length of an array; of null it is 0."""
        return self._length(INT32)

    def skip_tags(self) -> None:
        """Read over the tagged fields behind a structure."""
        if self._flexible:
            for _ in range(self._varint()):
                self._varint()
                self.raw(self._varint())

    def _length(self, form: struct.Struct) -> int:
        return max(0, self._varint() - 1 if self._flexible else self.number(form))

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._frame[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number


class Writer:
    """Writes fields from left to right into `frame`."""

    def __init__(self, *, flexible: bool) -> None:
        self.frame = bytearray()
        self._flexible = flexible

    def number(self, form: struct.Struct, number: int) -> None:
        """Write a number."""
        self.frame += form.pack(number)

    def text(self, text: bytes | None) -> None:
        """Write a string, or null."""
        self._length(INT16, text)
        self.frame += text or b""

    def data(self, data: bytes) -> None:
        """Write bytes with their length."""
        self._length(INT32, data)
        self.frame += data

    def count(self, count: int) -> None:
        """Write the length of an array."""
        self._length(INT32, range(count))

    def end_structure(self) -> None:
        """Write that no tagged fields follow."""
        if self._flexible:
            self.frame.append(0)

    def _length(self, form: struct.Struct, counted: bytes | range | None) -> None:
        if not self._flexible:
            self.frame += form.pack(-1 if counted is None else len(counted))
            return
        number = 0 if counted is None else len(counted) + 1
        while number >= 0x80:
            self.frame.append(number & 0x7F | 0x80)
            number >>= 7
        self.frame.append(number)
