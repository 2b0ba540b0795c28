"""Clients from PyPI, unchanged. Usage: python judges.py HTTP_URL JUDGE TOKEN [JUDGE TOKEN …].

tests/system/test_judges.py has the judges' names and the lines that they print.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from typing import Any, Final

import aiohttp
import httpx
from httpx_sse import aconnect_sse


def say(*words: str) -> None:
    print(*words, flush=True)  # noqa: T201 - the test reads it


async def httpx_sse(judge: str, url: str, token: str) -> None:
    """Come back with the last id, after the time that the gateway has asked for."""
    headers = {"Authorization": f"Bearer {token}"}
    retry_ms = 500
    timeout = httpx.Timeout(10.0, read=None)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False) as http:
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with aconnect_sse(http, "GET", "/sse", headers=headers) as source:
                    say(judge, "open")
                    async for event in source.aiter_sse():
                        headers["Last-Event-ID"] = event.id
                        retry_ms = retry_ms if event.retry is None else event.retry
                        if event.event == "message":
                            say(judge, "message", event.data)
                        elif event.event == "pushgate.gap":
                            say(judge, "gap")
            await asyncio.sleep(retry_ms / 1e3)


class Place:
    """How far a client has come: docs/protocol.md, "Resuming"."""

    def __init__(self) -> None:
        self._as_of = ""
        self._offsets: dict[str, str] = {}  # by topic and partition

    def take(self, frame: dict[str, Any]) -> None:
        if frame.get("control") == "gap":
            self._offsets.clear()
        if "cursor" not in frame:
            return
        self._as_of, *positions = frame["cursor"].split(",")
        if "data" in frame and positions:
            partition, _, offset = positions[-1].rpartition("-")
            self._offsets[partition] = offset

    @property
    def query(self) -> dict[str, str]:
        positions = (f"{partition}-{offset}" for partition, offset in self._offsets.items())
        return {"cursor": ",".join((self._as_of, *positions))} if self._as_of else {}


async def aiohttp_ws(judge: str, url: str, token: str) -> None:
    place = Place()
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.ws_connect(
                    "/ws", protocols=["pushgate.v1"], params=place.query
                ) as socket:
                    say(judge, "open")
                    await _receive(judge, socket, place)
            await asyncio.sleep(random.uniform(0.0, 0.5))


async def _receive(judge: str, socket: aiohttp.ClientWebSocketResponse, place: Place) -> None:
    """Receive until the connection ends, or the gateway says that the client has to reconnect."""
    async for message in socket:
        frame = json.loads(message.data)
        place.take(frame)
        if "data" in frame:
            say(judge, "message", frame["data"])
        elif frame["control"] == "gap":
            say(judge, "gap")
        elif frame["control"] == "reconnect":
            await asyncio.sleep(frame["after_ms"] / 1e3)
            return


JUDGES: Final = {"httpx-sse": httpx_sse, "aiohttp": aiohttp_ws}


async def main() -> None:
    url, *judges_and_tokens = sys.argv[1:]
    async with asyncio.TaskGroup() as tasks:
        for judge, token in zip(judges_and_tokens[::2], judges_and_tokens[1::2], strict=True):
            tasks.create_task(JUDGES[judge](judge, url, token))


if __name__ == "__main__":
    asyncio.run(main())
