"""A client of every transport, for `pushgate listen`: payloads as they were published."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a client gets it; `payload` is byte for byte the published payload."""

    id: str
    type: str | None
    payload: bytes


def _from_json(form: dict[str, Any]) -> Message:
    data = form["data"]
    payload = b64decode(data) if form.get("encoding") == "base64" else data.encode()
    return Message(form["id"], form["type"], payload)


async def websocket(url: str, token: str) -> AsyncIterator[Message]:
    """Yield messages from a WebSocket until it closes. `url` is the gateway's, http:// or https://.

    Raises:
        websockets.exceptions.InvalidStatus: the gateway refused; the error has the status.
    """
    address = f"ws{url.removeprefix('http')}/ws"
    subprotocols = [Subprotocol("pushgate.v1"), Subprotocol(f"bearer.{token}")]
    async with connect(address, subprotocols=subprotocols, proxy=None) as connection:
        async for frame in connection:
            form = msgspec.json.decode(frame)
            if "data" in form:
                yield _from_json(form)


async def sse(url: str, token: str) -> AsyncIterator[Message]:
    """Yield messages from an event stream (SSE) until the stream ends.

    Raises:
        httpx.HTTPStatusError: the gateway refused; the error has the status.
    """
    headers = {"authorization": f"Bearer {token}", "accept": "text/event-stream"}
    timeout = httpx.Timeout(10.0, read=None)
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False) as http,
        http.stream("GET", "/sse") as response,
    ):
        response.raise_for_status()
        fields: dict[bytes, list[bytes]] = {}
        async for line in _lines(response.aiter_raw()):
            if line:
                name, _, value = line.partition(b":")
                fields.setdefault(name, []).append(value.removeprefix(b" "))
                continue
            if b"data" in fields and b"id" in fields and not _is_control(fields):
                yield _from_event(fields)
            fields = {}


async def poll(url: str, token: str) -> AsyncIterator[Message]:
    """Yield messages from long polls until a poll fails.

    Raises:
        httpx.HTTPStatusError: the gateway refused; the error has the status.
    """
    headers = {"authorization": f"Bearer {token}"}
    timeout = httpx.Timeout(10.0, read=70.0)
    cursor: str | None = None
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=timeout, trust_env=False
    ) as http:
        while True:
            response = await http.get("/poll", params={"cursor": cursor} if cursor else {})
            response.raise_for_status()
            answer = msgspec.json.decode(response.content)
            cursor = answer["cursor"]
            for form in answer["messages"]:
                yield _from_json(form)


TRANSPORTS: Final[dict[str, Callable[[str, str], AsyncIterator[Message]]]] = {
    "ws": websocket,
    "sse": sse,
    "poll": poll,
}


def _is_control(fields: dict[bytes, list[bytes]]) -> bool:
    event = fields.get(b"event", [b""])[-1]
    return event.startswith(b"pushgate.") and event != b"pushgate.binary"


def _from_event(fields: dict[bytes, list[bytes]]) -> Message:
    event = fields[b"event"][-1].decode() if b"event" in fields else None
    data = b"\n".join(fields[b"data"])
    if event == "pushgate.binary":
        return _from_json(msgspec.json.decode(data))
    return Message(fields[b"id"][-1].decode().rpartition(" ")[2], event, data)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split lines as the HTML standard does (§9.2.6): at LF, CR and CRLF alone, not at U+2028."""
    unsplit = b""
    async for chunk in chunks:
        unsplit += chunk
        if unsplit.endswith(b"\r"):
            continue  # the LF of a CRLF may be on its way
        *lines, unsplit = _LINE_END.split(unsplit)
        for line in lines:
            yield line
