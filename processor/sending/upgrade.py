"""How a connection to a gateway becomes a link: one request for an upgrade, and its answer.

Only the head of the answer is read, and only its status and protocol count: all else about HTTP
ends there.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from typing import Final, cast
from urllib.parse import SplitResult, urlsplit

from processor.errors import ProcessorError
from registry.frames import LINK_PATH, LINK_PROTOCOL
from registry.resume import RESUME_PATH, RESUME_PROTOCOL

#: How long the connection may take, and with TLS its handshake.
_CONNECT_SECONDS: Final = 1.0
#: The most bytes of the head of the answer.
_MAX_HEAD_BYTES: Final = 16_384
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3})(?: [^\r\n]*)?\r\n")
_SWITCHED: Final = {
    protocol: re.compile(rb"\r\nupgrade:[ \t]*%b[ \t]*\r\n" % protocol.encode(), re.I)
    for protocol in (LINK_PROTOCOL, RESUME_PROTOCOL)
}
_PATHS: Final = {LINK_PROTOCOL: LINK_PATH, RESUME_PROTOCOL: RESUME_PATH}


class NoAnswer(ProcessorError):
    """The connection ended before the answer, or the answer is no HTTP."""


class UpgradeRefused(ProcessorError):
    """The answer is not 101 for this protocol; `status` says what instead."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


async def upgraded(
    url: str, fields: Mapping[str, str], *, tls: ssl.SSLContext, protocol: str = LINK_PROTOCOL
) -> tuple[asyncio.Transport, bytes]:
    """Connect, and ask for a link; return its transport, paused, and bytes behind the answer.

    `url` is scheme, host and port; `fields` have the credential. `tls` counts for https. `protocol`
    says which kind of link: for batches, or for questions (registry/resume.py).

    Raises:
        UpgradeRefused: there is no link to be had at the address, or not with this credential.
        NoAnswer, OSError: the connection failed, or TLS did (ssl.SSLError).
        TimeoutError: no connection within a second. The caller bounds the wait for the answer.
        ValueError: the host is no valid name (IDNA), or the port no port.
    """
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 0
    async with asyncio.timeout(_CONNECT_SECONDS):
        transport, upgrade = await loop.create_connection(
            lambda: _Upgrade(loop.create_future(), protocol),
            host,
            port,
            ssl=tls if parts.scheme == "https" else None,
        )
    try:
        transport.write(_request(parts, fields, protocol))
        return transport, await upgrade.answered
    except BaseException:
        transport.abort()
        raise
    finally:
        # The error's traceback has this frame, and the frame would have the error: such a circle
        # keeps the batches of all frames until a full collection.
        del upgrade


def _request(parts: SplitResult, fields: Mapping[str, str], protocol: str) -> bytes:
    """Return the head of the request (RFC 9110 §7.8)."""
    own = {"Host": parts.netloc, "Connection": "Upgrade", "Upgrade": protocol}
    lines = [f"{name}: {value}" for name, value in {**own, **fields}.items()]
    return "\r\n".join((f"GET {_PATHS[protocol]} HTTP/1.1", *lines, "", "")).encode("ascii")


class _Upgrade(asyncio.Protocol):
    """Waits for the head of the answer; `answered` gets the bytes behind the head."""

    def __init__(self, answered: asyncio.Future[bytes], protocol: str) -> None:
        self.answered = answered
        self._switched = _SWITCHED[protocol]
        self._arrived = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read the head, once it is complete."""
        if self.answered.done():
            return
        self._arrived += data
        head, end, rest = self._arrived.partition(b"\r\n\r\n")
        status_line = _STATUS_LINE.match(head + end)
        if not end:
            if len(self._arrived) > _MAX_HEAD_BYTES:
                self._fail(NoAnswer("the head of the answer is too large"))
        elif status_line is None:
            self._fail(NoAnswer("the answer is no HTTP"))
        elif status_line[1] == b"101" and self._switched.search(head + end):
            assert self._transport is not None  # noqa: S101 - bytes come behind connection_made
            self._transport.pause_reading()
            self.answered.set_result(rest)
        else:
            self._fail(UpgradeRefused(int(status_line[1])))

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up the answer that has not come."""
        error = NoAnswer("the connection ended before the answer to the upgrade")
        error.__cause__ = exc
        self._fail(error)

    def _fail(self, error: ProcessorError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)
