"""How `/pushgate.js` comes back: the cursors it sends, and what it makes of what it gets then."""

import json
from contextlib import AbstractAsyncContextManager
from typing import Final

import pytest

from tests.browser.chromium import Chromium
from tests.browser.pages import SHORTEST, data, messages, page_at, told, watch
from tests.browser.scripted import (
    STREAMS,
    Held,
    ScriptedGateway,
    connect,
    hand_over,
    say,
    scripted_gateway,
)
from tests.support.clients import eventually
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

#: A wall clock that goes by `passed`, in ms, and nothing that looks at it every few seconds.
CLOCK: Final = """
window.passed = 0;
((original) => { Date.now = () => original() + passed; })(Date.now);
((original) => {
  window.setTimeout = (then, ms) => (ms < 5_000 ? original(then, ms) : 0);
})(window.setTimeout);
"""


def silent_gateway() -> AbstractAsyncContextManager[ScriptedGateway]:
    """Give a gateway that leaves the hello, and its cursor, to the test."""
    return scripted_gateway(greets=False)


async def back(held: Held, gateway: ScriptedGateway) -> Held:
    """Cut a page off; give its next WebSocket."""
    held.cut()
    return await gateway.accepted()


async def test_it_comes_back_with_how_far_it_has_come(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway)
        assert held.cursor is None  # from now on
        await held.hello("a1")
        await held.message("1", "a1,push-0-5")
        await held.message("2", "a2,high.prio_x-y-3-7")
        await held.message("3", "a2,push-0-9")
        await held.message("pushed", "a3")  # is in no log
        await held.send(control="heartbeat", cursor="a4,high.prio_x-y-3-7")
        await held.message("4", "a5,push-1-0")
        assert await data(page, 5) == ["1", "2", "3", "pushed", "4"]
        held = await back(held, gateway)
        assert held.cursor == "a5~high.prio_x-y-3-7~push-0-9~push-1-0"
        assert held.token == "t1"
        await held.hello(held.cursor.replace("~", ","))
        await held.message("5", "a5,high.prio_x-y-3-7,push-1-0,push-0-10")
        assert (await data(page, 6))[-1] == "5"
        assert await told(page, "ws") == ["open", "error", "open"]  # and of no gap
        assert page.exceptions == []


@pytest.mark.parametrize("control", ["hello", "heartbeat", "reconnect"])
async def test_the_time_of_a_control_counts_and_no_position(
    chromium: Chromium, origin: GatewayProcess, control: str
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway)
        await held.hello("a1")
        form = {"heartbeat_ms": 60_000, "after_ms": 60_000, "cursor": "b2,push-0-9"}
        await held.send(control=control, **form)
        await held.message("1")
        await data(page, 1)
        assert (await back(held, gateway)).cursor == "b2"


async def test_while_it_resumes_the_time_stays_with_which_it_came(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway)
        await held.hello("a5")
        held = await back(held, gateway)
        await held.hello("a3")  # of a node that lags behind, or a clock that was set back
        await held.message("1", "a3,push-0-1")
        await data(page, 1)
        assert (await back(held, gateway)).cursor == "a3~push-0-1"


async def test_a_message_that_the_page_has_is_dropped_and_one_without_position_is_not(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        held = await connect(page, gateway)
        await held.hello("a1")
        for push_id, cursor in [
            ("5", "a1,push-0-5"),
            ("3", "a1,push-0-3"),
            ("5", "a2,push-0-5"),
            ("other partition", "a2,push-1-3"),
            ("pushed", "a2"),
            ("6", "a2,push-1-3,push-0-6"),
        ]:
            await held.message(push_id, cursor)
        assert await data(page, 4) == ["5", "other partition", "pushed", "6"]


async def test_a_gap_is_told_once_and_offsets_may_begin_again_behind_it(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway)
        await held.hello("a1")
        await held.message("old", "a1,push-0-500")
        await data(page, 1)
        held = await back(held, gateway)
        await held.hello("a1,push-0-500")
        await held.send(control="gap")
        await held.message("of the topic that was made anew", "a1,push-0-0")
        assert await data(page, 2) == ["old", "of the topic that was made anew"]
        assert await told(page, "ws") == ["open", "error", "open", "gap"]
        assert (await back(held, gateway)).cursor == "a1~push-0-0"


async def test_a_gateway_that_does_not_resume_is_a_gap_and_takes_the_cursor_away(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway)
        await held.hello("a1")
        await held.message("1", "a1,push-0-5")
        await data(page, 1)
        held = await back(held, gateway)
        assert held.cursor == "a1~push-0-5"
        await held.hello()
        await held.send(control="heartbeat")
        await held.message("2")
        await data(page, 2)
        assert await told(page, "ws") == ["open", "error", "open", "gap"]
        held = await back(held, gateway)
        assert held.cursor is None
        await held.hello()
        await held.message("3")
        await data(page, 3)
        assert (await told(page, "ws"))[4:] == ["error", "open", "gap"]


async def test_a_cursor_that_is_none_is_not_sent(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway)
        await held.hello("a1")
        for cursor in ("", "a b", "a1,push", "a1,ä-0-1", "a1;push-0-1"):
            await held.message("1", cursor)
        await data(page, 5)
        assert (await back(held, gateway)).cursor == "a1"


async def test_positions_are_kept_until_the_time_covers_them(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(CLOCK + SHORTEST)
        held = await connect(page, gateway)
        await held.hello("a1")
        await held.message("1", "a1,push-0-1")
        await data(page, 1)
        await page.evaluate("passed += 100_000")
        await held.message("2", "a2,push-1-1")
        await data(page, 2)
        await page.evaluate("passed += 60_000")  # away, or waiting for what was missed
        held = await back(held, gateway)
        assert held.cursor == "a2~push-0-1~push-1-1"
        await held.hello("a2,push-0-1,push-1-1")
        await held.message("3", "a2,push-0-1,push-1-1,push-2-1")
        await data(page, 3)
        held = await back(held, gateway)
        assert held.cursor == "a2~push-0-1~push-1-1~push-2-1"
        await held.send(control="heartbeat", cursor="b1")
        await held.message("4")
        await data(page, 4)
        assert (await back(held, gateway)).cursor == "b1~push-1-1~push-2-1"


async def test_it_sends_the_last_64_positions(chromium: Chromium, origin: GatewayProcess) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway)
        await held.hello("a1")
        for partition in range(70):
            await held.message("m", f"a1,push-{partition}-1")
        await held.message("m", "a1,push-6-2")
        await held.message("m", "a1,push-70-1")
        await data(page, 72)
        held = await back(held, gateway)
        assert held.cursor is not None
        sent = held.cursor.split("~")[1:]
        expected = [f"push-{partition}-1" for partition in range(8, 70)]
        assert sent == [*expected, "push-6-2", "push-70-1"]


async def test_the_second_begins_where_the_first_was_and_brings_nothing_twice(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    count = 300  # more than ids are remembered
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        first = await connect(page, gateway)
        await first.hello("a1")
        await first.message("0", "a1,push-0-0")
        await data(page, 1)
        second = await hand_over(first, gateway)
        assert second.cursor == "a1~push-0-0"
        await second.hello("a1,push-0-0")
        for number in range(1, count):
            await first.message(str(number), f"a2,push-0-{number}")
        await data(page, count)
        for number in range(1, 100):
            await second.message(str(number), f"a1,push-0-{number}")
        assert await first.closed_by_page() == 1000
        for number in range(100, count + 2):
            await second.message(str(number), f"a1,push-0-{number}")
        expected = [str(number) for number in range(count + 2)]
        assert await data(page, count + 2) == expected
        await second.message("pushed", "a3")
        assert await data(page, count + 3) == [*expected, "pushed"]
        assert await told(page, "ws") == ["open"]


async def test_the_cursor_of_the_second_does_not_count_before_its_messages(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        first = await connect(page, gateway)
        await first.hello("a1")
        second = await hand_over(first, gateway)
        await second.hello("b1")
        await second.message("2", "b2,push-0-2")
        await second.message("3", "b3,push-0-3")
        await first.message("1", "a2,push-0-1")
        await data(page, 1)
        second.cut()  # with messages 2 and 3, which wait for the first
        third = await gateway.accepted()
        assert third.cursor == "a2~push-0-1"
        await third.hello("a2,push-0-1")
        await third.message("2", "a2,push-0-2")
        first.cut()
        assert await data(page, 2) == ["1", "2"]
        # Whether the page was without any link for a moment depends on which of two is faster.
        assert {*await told(page, "ws")} == {"open"}


async def test_where_the_first_ends_before_the_second_is_open_nothing_is_missed(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        first = await connect(page, gateway)
        await first.hello("a1")
        gateway.admits.clear()
        await first.send(control="reconnect", after_ms=0, code=1001)
        await eventually(lambda: gateway.asked == 2, "the second is on its way")
        await first.message("1", "a1,push-0-1")
        await data(page, 1)
        await first.close(1001)
        await page.until("seen.ws.connection.state === 'connecting'")
        gateway.admits.set()
        second = await gateway.accepted()
        await second.hello("a1")
        await second.message("1", "a1,push-0-1")
        await second.message("2", "a1,push-0-2")
        assert await data(page, 2) == ["1", "2"]
        assert await told(page, "ws") == ["open", "open"]


async def test_the_second_may_be_of_a_gateway_that_does_not_resume(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        first = await connect(page, gateway)
        await first.hello("a1")
        second = await hand_over(first, gateway)
        await second.hello()
        await first.message("1", "a1,push-0-1")
        await second.message("1")
        await second.message("2")
        assert await first.closed_by_page() == 1000
        assert await data(page, 2) == ["1", "2"]
        assert await told(page, "ws") == ["open"]  # the two overlapped: nothing was missed
        third = await back(second, gateway)
        assert third.cursor is None
        await third.hello()
        await page.until("seen.ws.told.length === 4")
        assert await told(page, "ws") == ["open", "error", "open", "gap"]


async def test_a_repeat_that_is_known_by_its_id_moves_the_page_on(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, silent_gateway() as gateway:
        await page.evaluate(SHORTEST)
        first = await connect(page, gateway)  # of a gateway that does not resume
        await first.hello()
        second = await hand_over(first, gateway)
        await second.hello("a1")
        await first.message("1")
        await second.message("1", "a2,push-0-1")
        assert await first.closed_by_page() == 1000
        await second.message("2")
        assert await data(page, 2) == ["1", "2"]
        assert (await back(second, gateway)).cursor == "a2~push-0-1"


async def test_what_comes_on_a_link_that_the_page_has_left_says_nothing(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(
            """window.sockets = [];
            window.WebSocket = class {
              constructor(url, protocols) {
                this.protocols = protocols;
                sockets.push(this);
                queueMicrotask(() => this.onopen());
              }
              say(form) { this.onmessage({data: JSON.stringify(form)}); }
              close() { this.closed = true; }
            };
            window.hello = {control: 'hello', heartbeat_ms: 60000, cursor: 'a1'};
            watch('ws', {transport: 'ws', token: 't1'});"""
        )
        await page.until("sockets.length")
        await page.evaluate("sockets[0].say(hello)")
        await page.until("seen.ws.connection.state === 'open'")
        await page.evaluate("sockets[0].say({control: 'reconnect', after_ms: 0, code: 1001})")
        await page.until("sockets.length === 2")
        await page.evaluate("sockets[1].say(hello)")
        await page.until("sockets[0].closed")
        await page.evaluate("sockets[0].say({control: 'gap'})")
        await page.evaluate("sockets[0].say({control: 'heartbeat', cursor: 'a9'})")
        await page.evaluate("sockets[1].say({control: 'reconnect', after_ms: 0, code: 1001})")
        await page.until("sockets.length === 3")
        assert await page.evaluate("sockets[2].protocols[1]") == "cursor.a1"
        assert await told(page, "ws") == ["open"]


async def test_an_event_stream_comes_back_with_how_far_it_has_come(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(STREAMS + SHORTEST)
        await watch(page, "sse", "t1", until_open=False)
        await page.until("streams.length")
        assert await page.evaluate("new URL(streams[0].url).search") == ""
        await say(page, 0, "event: pushgate.cursor\ndata: 60000\nid: a1\n\n")
        await say(page, 0, "data: 1\nid: a1,push-0-5 m1\n\n")
        binary = json.dumps({"id": "m2", "type": None, "data": "/w==", "encoding": "base64"})
        await say(page, 0, f"event: pushgate.binary\ndata: {binary}\nid: a1,push-1-3 m2\n\n")
        await say(page, 0, "event: pushgate.cursor\ndata: 60000\nid: a2,push-1-3\n\n")
        await page.evaluate("streams[0].controller.close()")
        await page.until("streams.length === 2")
        cursor = await page.evaluate("new URL(streams[1].url).searchParams.get('cursor')")
        assert cursor == "a2,push-0-5,push-1-3"
        await say(page, 1, f"event: pushgate.cursor\ndata: 60000\nid: {cursor}\n\n")
        await say(page, 1, "data: again\nid: a2,push-1-3,push-0-5 m1\n\n")
        await say(page, 1, "data: 3\nid: a2,push-1-3,push-0-6 m3\n\n")
        found = [message["id"] for message in await messages(page, "sse", 3)]
        assert found == ["m1", "m2", "m3"]
        assert await told(page, "sse") == ["open", "error", "open"]


async def test_an_event_stream_that_does_not_resume_is_a_gap(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(STREAMS + SHORTEST)
        await watch(page, "sse", "t1", until_open=False)
        await page.until("streams.length")
        await say(page, 0, "event: pushgate.cursor\ndata: 60000\nid: a1\n\n")
        await page.evaluate("streams[0].controller.close()")
        await page.until("streams.length === 2")
        for _ in range(2):
            await say(page, 1, "event: pushgate.cursor\ndata: 60000\n\n")
        await say(page, 1, "data: 1\nid: m1\n\n")
        await messages(page, "sse", 1)
        assert await told(page, "sse") == ["open", "error", "open", "gap"]
