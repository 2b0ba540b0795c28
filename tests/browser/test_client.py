"""`/pushgate.js` in a real browser, against a real gateway process."""

import json
from collections.abc import Iterator
from typing import Final

import pytest

from pushgate.embedded import LOOPBACK, choose_port
from tests.browser.chromium import Chromium
from tests.browser.pages import TRANSPORTS, messages, page_at, watch
from tests.support.clients import Pusher, eventually, pusher_to, token
from tests.support.processes import GatewayProcess, http_status, wait_until

pytestmark = pytest.mark.anyio

RECONNECT_SECONDS: Final = 30.0

HOSTILE: Final = {
    "empty": "",
    "quotes": "\"'`\\ \\n \\u0041",
    "a quarter of JSON": '{"data": "',
    "line ends": "\r\n\r\r\n\n",
    "fields of an event": "one\nid: forged\nevent: forged\ndata: forged\n\nretry: 1\n",
    "spaces": "  two before, two after  ",
    "colons": ": no comment",
    "NUL and friends": "\x00\x01\x1b\x7f\x85",
    "separators": "\u2028 \u2029",
    "byte order marks": "\ufeff\ufeff",
    "beyond the BMP": "👩‍👩‍👧‍👦 \U0010ffff \uffff",
    "markup": "</script><img src=x onerror=alert(1)><!--",
    "64 KB": "0123456789abcdé" * 4_096,
}
TYPES: Final = (None, "order.paid", "message", "a: b", " spaced ", "Größe \u2028", "__proto__", "0")


@pytest.fixture
def gateway(redis_url: str) -> Iterator[GatewayProcess]:
    with GatewayProcess("browser", redis_url=redis_url) as process:
        yield process


async def push_to_all(pusher: Pusher, user: str, payload: bytes, **fields: str) -> None:
    """Push to a user who has one connection of each transport."""
    entry = {"user": user, "data": payload, **fields}
    assert await pusher.push([entry], packed=True) == [len(TRANSPORTS)]


def as_lines(text: str) -> str:
    """What SSE makes of a text: its line ends become LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_payloads_and_types_arrive_as_they_were_published(
    chromium: Chromium, gateway: GatewayProcess, transport: str
) -> None:
    async with page_at(chromium, gateway.port) as page, pusher_to(gateway.internal_port) as pusher:
        await watch(page, transport, token("alice"))
        expected = []
        for number, payload in enumerate(HOSTILE.values()):
            push_id = f"id:{number}-é"
            await pusher.push_one("alice", payload.encode(), id=push_id)
            data = as_lines(payload) if transport == "sse" else payload
            expected.append({"id": push_id, "type": None, "data": data})
        for number, event_type in enumerate(TYPES):
            fields = {} if event_type is None else {"type": event_type}
            await pusher.push_one("alice", b"typed", id=f"t{number}", **fields)
            expected.append({"id": f"t{number}", "type": event_type, "data": "typed"})
        assert await messages(page, transport, len(expected)) == expected
        assert page.exceptions == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_not_utf8_is_an_array_of_bytes(
    chromium: Chromium, gateway: GatewayProcess, transport: str
) -> None:
    payload = bytes(range(256)) * 4
    async with page_at(chromium, gateway.port) as page, pusher_to(gateway.internal_port) as pusher:
        await watch(page, transport, token("alice"))
        await pusher.push_one("alice", payload, id="b", type="image")
        await pusher.push_one("alice", b"\xff", id="c")
        assert await messages(page, transport, 2) == [
            {"id": "b", "type": "image", "data": {"bytes": list(payload)}},
            {"id": "c", "type": None, "data": {"bytes": [255]}},
        ]


async def test_all_come_back_after_the_gateway_restarts(chromium: Chromium, redis_url: str) -> None:
    with GatewayProcess("browser", redis_url=redis_url, resume_seconds=0) as gateway:
        async with page_at(chromium, gateway.port) as page:
            for transport in TRANSPORTS:
                await watch(page, transport, token("alice"))
            gateway.terminate()
            for transport in TRANSPORTS:
                await page.until(f"seen.{transport}.connection.state === 'waiting'")
            gateway.start()
            for transport in TRANSPORTS:
                is_open = f"seen.{transport}.connection.state === 'open'"
                await page.until(is_open, timeout_seconds=RECONNECT_SECONDS)
            async with pusher_to(gateway.internal_port) as pusher:
                await push_to_all(pusher, "alice", b"again")
            for transport in TRANSPORTS:
                [message] = await messages(page, transport, 1)
                assert message["data"] == "again"
                # Where clients don't resume, what came meanwhile is gone: the page is told.
                told = await page.evaluate(f"seen.{transport}.told")
                assert told[0] == "open"
                assert told[1:-2] == ["error"] * (len(told) - 3)
                assert told[-2:] == ["open", "gap"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refused_token_ends_it(
    chromium: Chromium, gateway: GatewayProcess, transport: str
) -> None:
    async with page_at(chromium, gateway.port) as page:
        await watch(page, transport, token("alice", secret="z" * 32), until_open=False)
        await page.until(f"seen.{transport}.connection.state === 'closed'")
        assert await page.evaluate(f"seen.{transport}.told") == ["error", "close"]
        [error] = await page.evaluate(f"seen.{transport}.errors")
        assert (error["status"], error["retryIn"]) == (401, None)
        assert "401" in error["reason"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_gateway_that_is_not_ready_says_when_to_come_back(
    chromium: Chromium, transport: str
) -> None:
    nowhere = f"redis://{LOOPBACK}:{choose_port()}/0"
    gateway = GatewayProcess("unready", redis_url=nowhere).start(until_ready=False)
    with gateway:
        wait_until(lambda: http_status(gateway.port, "/healthz") == 200, "alive")
        async with page_at(chromium, gateway.port) as page:
            await page.evaluate("Math.random = () => 0")  # its own delay would be half a second
            await watch(page, transport, token("alice"), until_open=False)
            await page.until(f"seen.{transport}.errors.length")
            [error] = await page.evaluate(f"seen.{transport}.errors")
            assert error["status"] == 503
            assert 1_000 <= error["retryIn"] <= 10_000
            assert await page.evaluate(f"seen.{transport}.connection.state") == "waiting"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_close_ends_it_for_good(
    chromium: Chromium, gateway: GatewayProcess, transport: str
) -> None:
    async with page_at(chromium, gateway.port) as page, pusher_to(gateway.internal_port) as pusher:
        await watch(page, transport, token("alice"))
        await page.evaluate(f"seen.{transport}.connection.close()")
        await page.evaluate(f"seen.{transport}.connection.close()")
        assert await page.evaluate(f"seen.{transport}.told") == ["open", "close"]
        assert await page.evaluate(f"seen.{transport}.connection.state") == "closed"
        if transport == "poll":
            return  # its session waits for another poll, by design

        async def gone() -> bool:
            results: list[int] = await pusher.push([{"user": "alice", "data": "late"}])
            return results == [0]

        await eventually(gone, "the gateway has let go of it")
        assert await page.evaluate(f"seen.{transport}.told") == ["open", "close"]


async def test_a_token_may_be_fetched_and_is_fetched_again_for_each_attempt(
    chromium: Chromium, gateway: GatewayProcess
) -> None:
    async with page_at(chromium, gateway.port) as page:
        await page.evaluate("Math.random = () => 0")
        await page.evaluate(
            f"""(() => {{
              const answers = [Promise.reject(new Error('no backend')), '{token("alice")}'];
              watch('ws', {{token: async () => answers.shift()}});
            }})()"""
        )
        await page.until("seen.ws.connection.state === 'open'")
        assert await page.evaluate("seen.ws.told") == ["error", "open"]
        [error] = await page.evaluate("seen.ws.errors")
        assert error == {"status": None, "reason": "no backend", "retryIn": 500}


async def test_a_handler_that_throws_does_not_disconnect(
    chromium: Chromium, gateway: GatewayProcess
) -> None:
    async with page_at(chromium, gateway.port) as page, pusher_to(gateway.internal_port) as pusher:
        for transport in TRANSPORTS:
            await watch(page, transport, token("alice"))
        await page.evaluate(
            """Object.values(seen).forEach(({connection}) => {
              const {onmessage} = connection;
              connection.onmessage = (event) => { onmessage(event); throw new Error('mine'); };
            })"""
        )
        await push_to_all(pusher, "alice", b"1")
        await push_to_all(pusher, "alice", b"2")
        for transport in TRANSPORTS:
            assert [m["data"] for m in await messages(page, transport, 2)] == ["1", "2"]
            assert await page.evaluate(f"seen.{transport}.told") == ["open"]
        assert len(page.exceptions) == 2 * len(TRANSPORTS)  # the page is told, as always
        assert all("mine" in exception for exception in page.exceptions)


async def test_a_page_of_an_allowed_origin_connects_to_where_the_script_came_from(
    chromium: Chromium, redis_url: str
) -> None:
    gateway = GatewayProcess("browser", redis_url=redis_url)
    gateway.env["PUSHGATE_ORIGINS"] = f"http://localhost:{gateway.port}"
    with gateway:
        async with (
            page_at(chromium, gateway.port, host="localhost") as page,
            pusher_to(gateway.internal_port) as pusher,
        ):
            for transport in TRANSPORTS:
                await watch(page, transport, token("alice"))
            await push_to_all(pusher, "alice", b"across")
            for transport in TRANSPORTS:
                [message] = await messages(page, transport, 1)
                assert message["data"] == "across"
            refused = token("alice", secret="z" * 32)
            await watch(page, "ws", refused, until_open=False)
            await page.until("seen.ws.connection.state === 'closed'")
            assert await page.evaluate("seen.ws.errors[0].status") == 401


async def test_a_page_of_the_gateway_connects_by_its_cookie_alone(
    chromium: Chromium, gateway: GatewayProcess
) -> None:
    async with page_at(chromium, gateway.port) as page, pusher_to(gateway.internal_port) as pusher:
        await page.evaluate(f"document.cookie = 'pushgate_token={token('alice')}'")
        try:
            for transport in TRANSPORTS:
                await page.evaluate(f"watch('{transport}', {{transport: '{transport}'}})")
                await page.until(f"seen.{transport}.connection.state === 'open'")
            await push_to_all(pusher, "alice", b"by cookie")
            for transport in TRANSPORTS:
                [message] = await messages(page, transport, 1)
                assert message["data"] == "by cookie"
        finally:  # a cookie is of the host, whatever the port: the next test's gateway has it too
            await page.evaluate("document.cookie = 'pushgate_token=; max-age=0'")


async def test_an_event_stream_may_be_cut_anywhere_and_end_its_lines_in_any_way(
    chromium: Chromium, gateway: GatewayProcess
) -> None:
    stream = (
        "\ufeff: a comment\r\rid: 9 8 m1\revent: t\rdata: a\r\rdata: control\n\n"
        "event: pushgate.bye\ndata: {}\n\nid: m2\r\ndata:b\r\ndata\r\ndata: \u2028é\r\n\r\n"
        "retry: 70000\n\nid: m3\ndata: never finished\n"
    )
    async with page_at(chromium, gateway.port) as page:
        await page.evaluate(
            f"""(() => {{
              const bytes = new TextEncoder().encode({json.dumps(stream)});
              window.fetch = async () => new Response(new ReadableStream({{
                start(controller) {{
                  bytes.forEach((byte) => controller.enqueue(Uint8Array.of(byte)));
                  controller.close();
                }},
              }}));
              watch('sse', {{transport: 'sse', token: 'x'}});
            }})()"""
        )
        await page.until("seen.sse.errors.length")
        assert await page.evaluate("seen.sse.messages") == [
            {"id": "m1", "type": "t", "data": "a"},
            {"id": "m2", "type": None, "data": "b\n\n\u2028é"},
        ]
        assert await page.evaluate("seen.sse.errors[0].retryIn") == 70_000


async def test_control_frames_are_not_messages(chromium: Chromium, gateway: GatewayProcess) -> None:
    async with page_at(chromium, gateway.port) as page:
        await page.evaluate(
            """(() => {
              window.WebSocket = class {
                constructor(url, protocols) {
                  Object.assign(window, {url: String(url), protocols});
                  queueMicrotask(() => {
                    this.onopen();
                    this.onmessage({data: '{"control": "bye", "id": "1"}'});
                    this.onmessage({data: '{"id": "2", "type": null, "data": ""}'});
                  });
                }
                close() {}
              };
              watch('ws', {token: 'x.y.z', url: 'https://push.example/below'});
            })()"""
        )
        assert await messages(page, "ws", 1) == [{"id": "2", "type": None, "data": ""}]
        assert page.exceptions == []
        assert await page.evaluate("url") == "wss://push.example/below/ws"
        assert await page.evaluate("protocols") == ["pushgate.v1", "bearer.x.y.z"]
