"""What `/pushgate.js` does after each end and each control: a real browser, a scripted gateway."""

import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.connections.closes import CLOSES, Next
from pushgate.embedded import LOOPBACK
from tests.browser.chromium import Chromium, Page
from tests.browser.pages import (
    LONGEST,
    SHORTEST,
    TRANSPORTS,
    data,
    messages,
    page_at,
    told,
    watch,
)
from tests.browser.scripted import (
    GREETING_STREAMS,
    STREAMS,
    ScriptedGateway,
    connect,
    hand_over,
    say,
    scripted_gateway,
)
from tests.support.clients import eventually, token
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

CUT = 1006
#: What takes half a second or more takes for ever.
STOPPED_CLOCK = """((original) => {
  window.setTimeout = (then, ms) => (ms < 500 ? original(then, ms) : 0);
})(window.setTimeout)"""
#: The WebSocket that the page has made last, and how many frames have come on it.
LAST_SOCKET = """
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    window.lastSocket = this;
    this.heard = 0;
    this.addEventListener('message', () => { this.heard += 1; });
  }
};
"""
DELAYS = {Next.NOW: 1_000, Next.LATER: 5_000, Next.NEW_TOKEN: 1_000, Next.NEVER: None}


async def error(page: Page, name: str = "ws") -> Any:
    """Give the first error that the page is told of."""
    await page.until(f"seen.{name}.errors.length")
    return (await page.evaluate(f"seen.{name}.errors"))[0]


def tokens(*values: str) -> str:
    """JavaScript of a function that gives these tokens, and the last one for ever."""
    return f"((all) => () => all.length > 1 ? all.shift() : all[0])({json.dumps(values)})"


async def test_after_each_close_it_does_what_the_table_says(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    expected = {close.code: close.next for close in CLOSES}
    expected |= {1000: Next.LATER, 1011: Next.LATER, 4999: Next.LATER, CUT: Next.LATER}
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(LONGEST)
        for code, after in expected.items():
            held = await connect(page, gateway, source=tokens("t1", "t2"))
            if code == CUT:
                held.cut()
            else:
                await held.close(code, f"reason {code}")
            said = await error(page)
            assert said["retryIn"] == DELAYS[after], code
            assert code == CUT or said["reason"] == f"reason {code}"
            state = await page.evaluate("seen.ws.connection.state")
            assert state == ("closed" if after is Next.NEVER else "waiting")
            assert await told(page, "ws") == (
                ["open", "error", "close"] if after is Next.NEVER else ["open", "error"]
            )
            await page.evaluate("seen.ws.connection.close()")


@pytest.mark.parametrize("source", ["'t1'", "undefined", "() => 't1'"])
async def test_a_token_that_has_expired_and_is_the_only_one_ends_it(
    chromium: Chromium, origin: GatewayProcess, source: str
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        held = await connect(page, gateway, source=source)
        await held.close(4002, "token expired")
        assert (await error(page))["retryIn"] is None
        assert await told(page, "ws") == ["open", "error", "close"]


async def test_tokens_may_expire_again_and_again(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(SHORTEST)
        held = await connect(page, gateway, source=tokens("t1", "t2", "t3"))
        for following in ("t2", "t3"):
            await held.close(4002, "token expired")
            held = await gateway.accepted()
            assert held.token == following


async def test_it_is_quick_once_and_backs_off_when_that_fails(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(SHORTEST)
        for delay in (100, 200, 400):
            held = await (connect(page, gateway) if delay == 100 else gateway.accepted())
            await held.close(4001)
            await page.until(f"seen.ws.errors.some(({{retryIn}}) => retryIn === {delay})")


async def test_what_comes_on_both_comes_once_and_in_order(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        first = await connect(page, gateway, source=tokens("t1", "t2"))
        await first.message("1")
        second = await hand_over(first, gateway)
        assert (first.token, second.token) == ("t1", "t2")
        await second.message("3")  # the first link is slower
        await first.message("2")  # was under way to the first when the second opened
        await first.message("3")
        await first.message("4")
        await second.message("4")
        await second.message("5")  # never comes on the first
        assert await first.closed_by_page() == 1000
        assert await data(page, 5) == ["1", "2", "3", "4", "5"]
        await second.message("6")
        assert await data(page, 6) == ["1", "2", "3", "4", "5", "6"]
        assert await told(page, "ws") == ["open"]
        assert await page.evaluate("seen.ws.connection.state") == "open"


async def test_messages_do_not_wait_for_a_hand_over_without_bound(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    expected = [str(number) for number in range(1_000)]
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(STOPPED_CLOCK)
        first = await connect(page, gateway)
        second = await hand_over(first, gateway)
        for push_id in expected[:3]:
            await first.message(push_id)
        await data(page, 3)
        for push_id in expected:
            await second.message(push_id)
        assert await data(page, 1_000) == expected
        assert await first.closed_by_page() == 1000


async def test_while_the_second_is_refused_the_first_goes_on(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(SHORTEST)
        first = await connect(page, gateway)
        gateway.refuses = True
        await first.send(control="reconnect", after_ms=0, code=1001)
        await eventually(lambda: gateway.asked >= 3, "it has tried again")
        await first.message("still here")
        assert await data(page, 1) == ["still here"]
        gateway.refuses = False
        second = await gateway.accepted()
        assert await first.closed_by_page() == 1000
        await second.message("there")
        assert await data(page, 2) == ["still here", "there"]
        assert await told(page, "ws") == ["open"]


async def test_when_the_second_ends_at_once_the_first_goes_on(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(SHORTEST + ";" + LAST_SOCKET)
        first = await connect(page, gateway)
        second = await hand_over(first, gateway)
        await second.message("1")
        await second.close(1001)
        await first.message("1")
        assert await data(page, 1) == ["1"]
        second = await gateway.accepted()
        await second.message("2")
        await page.until("lastSocket.heard === 2")
        await first.close(1001)
        assert await data(page, 2) == ["1", "2"]
        assert await told(page, "ws") == ["open"]


async def test_where_the_first_ends_before_the_second_is_open_the_page_is_told_of_the_gap(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        first = await connect(page, gateway)
        gateway.admits.clear()
        await first.send(control="reconnect", after_ms=0, code=1001)
        await eventually(lambda: gateway.asked == 2, "the second is on its way")
        await first.close(1001)
        await page.until("seen.ws.connection.state === 'connecting'")
        gateway.admits.set()
        second = await gateway.accepted()
        await page.until("seen.ws.connection.state === 'open'")
        await second.message("1")
        assert await data(page, 1) == ["1"]
        assert await told(page, "ws") == ["open", "open", "gap"]
        assert gateway.asked == 2


async def test_told_to_stay_away_it_gives_up_the_second_too(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        first = await connect(page, gateway)
        second = await hand_over(first, gateway)
        await first.close(4003, "disconnected")
        await second.ended()  # with 1000, or 1001 where the page does not know yet that it is open
        assert await told(page, "ws") == ["open", "error", "close"]


async def test_close_ends_both(chromium: Chromium, origin: GatewayProcess) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        first = await connect(page, gateway)
        second = await hand_over(first, gateway)
        await page.evaluate("seen.ws.connection.close()")
        assert await first.closed_by_page() == 1000
        await second.ended()  # with 1000, or 1001 where the page does not know yet that it is open
        assert await told(page, "ws") == ["open", "close"]


async def test_a_token_that_runs_out_is_replaced_in_band(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        held = await connect(page, gateway, source=tokens("t1", "t2", "t3"))
        await held.send(control="expiring", in_ms=60_000)
        assert await held.received() == {"control": "refresh", "token": "t2"}
        await held.send(control="refreshed", expires_in_ms=90_000)
        await held.send(control="expiring", in_ms=60_000)
        assert await held.received() == {"control": "refresh", "token": "t3"}
        await held.send(control="refreshed", expires_in_ms=90_000)
        assert await told(page, "ws") == ["open"]
        await held.close(4002, "token expired")  # and t3 is the last
        assert (await error(page))["retryIn"] is None


async def test_a_refused_refresh_is_tried_again_until_the_token_is_over(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(
            """window.asked = 0; window.source = () => {
              asked += 1;
              if (asked === 2) throw new Error('no backend');
              return asked < 3 ? 't1' : 't2';
            }"""
        )
        held = await connect(page, gateway, source="source")
        await held.send(control="expiring", in_ms=2_400)
        for _ in range(2):  # half of the time that is left has passed, and again
            assert await held.received() == {"control": "refresh", "token": "t2"}
            await held.send(control="refused", reason="token refused")
        await held.close(4002, "token expired")
        await gateway.accepted()
        await page.until("seen.ws.connection.state === 'open'")
        assert await told(page, "ws") == ["open", "error", "open", "gap"]
        assert await page.evaluate("asked") == 5


async def test_a_gap_is_told_and_other_controls_are_ignored(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        held = await connect(page, gateway)
        await held.send(control="gap")
        await held.send(control="expiring", in_ms=0)  # a fixed token can't be replaced
        await held.send(control="constructor")
        await held.send(anything=1)
        await held.message("1")
        assert await data(page, 1) == ["1"]
        assert await told(page, "ws") == ["open", "gap"]
        assert page.exceptions == []


async def test_event_streams_are_handed_over_and_told_of_gaps(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(GREETING_STREAMS)
        await watch(page, "sse", "t1")
        await say(page, 0, "event: pushgate.gap\ndata: {}\n\nevent: pushgate.other\ndata: ?\n\n")
        await say(page, 0, "id: 1\ndata: 1\n\n")
        await say(page, 0, 'event: pushgate.reconnect\nretry: 9000\ndata: {"after_ms": 0}\n\n')
        await page.until("streams.length === 2")
        await say(page, 1, "id: c 2\ndata: 2\n\nid: c 3\ndata: 3\n\n")
        await say(page, 0, "id: c 2\ndata: 2\n\n")
        await page.until("streams[0].aborted")
        await say(page, 1, "id: c 4\ndata: 4\n\n")
        found = [message["id"] for message in await messages(page, "sse", 4)]
        assert found == ["1", "2", "3", "4"]
        assert await told(page, "sse") == ["open", "gap"]
        assert page.exceptions == []


#: A clock that a test moves: `pass(ms)` calls what is due.
CLOCK = """
window.now = 0;
window.timers = [];
performance.now = () => now;
window.setTimeout = (then, ms) => {
  const timer = {at: now + ms, then};
  timers.push(timer);
  return timer;
};
window.clearTimeout = (timer) => { timers = timers.filter((other) => other !== timer); };
window.pass = (ms) => {
  now += ms;
  const due = timers.filter(({at}) => at <= now);
  timers = timers.filter(({at}) => at > now);
  due.forEach(({then}) => then());
};
"""


class WebSocketSeat:
    """A page's WebSocket, whose gateway says what a test wants."""

    name = "ws"

    def __init__(self, page: Page, gateway: ScriptedGateway) -> None:
        self.page = page
        self._gateway = gateway

    async def open(self) -> None:
        await self.page.evaluate(LAST_SOCKET)
        self._held = await connect(self.page, self._gateway)
        await self.page.until("lastSocket.readyState === WebSocket.OPEN")

    async def say_hello(self) -> None:
        await self._held.send(control="hello", heartbeat_ms=5_000)

    async def beat(self) -> None:
        await self._held.send(control="heartbeat")

    async def message(self, push_id: str) -> None:
        await self._held.message(push_id)

    async def is_left_for_another(self) -> None:
        assert await self._held.closed_by_page() == 1000
        await self._gateway.accepted()


class StreamSeat:
    """A page's event stream, in which a test says what it wants."""

    name = "sse"

    def __init__(self, page: Page, gateway: ScriptedGateway) -> None:
        self.page = page

    async def open(self) -> None:
        await self.page.evaluate(STREAMS)
        await watch(self.page, "sse", "t1", until_open=False)
        await self.page.until("streams.length")

    async def say_hello(self) -> None:
        await say(self.page, 0, "event: pushgate.cursor\ndata: 5000\n\n")

    beat = say_hello

    async def message(self, push_id: str) -> None:
        await say(self.page, 0, f"id: {push_id}\ndata: {push_id}\n\n")

    async def is_left_for_another(self) -> None:
        await self.page.until("streams[0].aborted && streams.length === 2")


@pytest.fixture(params=[WebSocketSeat, StreamSeat])
async def seat(
    request: pytest.FixtureRequest, chromium: Chromium, origin: GatewayProcess
) -> AsyncIterator[WebSocketSeat | StreamSeat]:
    """Give a connection without a hello yet, of a page whose clock stands still."""
    async with (
        page_at(chromium, origin.port) as page,
        scripted_gateway(greets=False) as gateway,
    ):
        await page.evaluate(CLOCK)
        opened: WebSocketSeat | StreamSeat = request.param(page, gateway)
        await opened.open()
        yield opened


async def test_a_silent_network_is_noticed_ten_seconds_after_a_heartbeat_was_due(
    seat: WebSocketSeat | StreamSeat,
) -> None:
    page, errors = seat.page, f"seen.{seat.name}.errors"
    await page.evaluate("pass(9_999)")
    await seat.say_hello()
    await seat.message("1")
    await messages(page, seat.name, 1)
    await page.evaluate("pass(14_000)")
    await seat.beat()
    await seat.message("2")
    await messages(page, seat.name, 2)
    await page.evaluate("pass(1_000)")  # overdue without the heartbeat
    await page.evaluate("pass(60_000)")  # frozen: what came meanwhile is not read yet
    await seat.message("3")
    await messages(page, seat.name, 3)
    await page.evaluate("pass(2_000)")
    await page.evaluate("pass(12_999)")
    assert await page.evaluate(errors) == []
    await page.evaluate("pass(1)")
    await page.until(f"{errors}.length")
    (noticed,) = await page.evaluate(errors)
    assert (noticed["reason"], noticed["status"]) == ("nothing came for too long", None)
    await page.evaluate("pass(5_000)")
    await seat.is_left_for_another()


@pytest.fixture
async def frozen_port() -> AsyncIterator[int]:
    """Give the port of a gateway that is frozen: the kernel accepts, and nothing answers."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        yield listener.getsockname()[1]


async def given_up_after_ten_seconds(page: Page, name: str) -> None:
    """Let ten seconds pass by the page's clock; return when it has given up what began before."""
    before = len(await page.evaluate(f"seen.{name}.errors"))
    await page.evaluate("pass(9_999)")
    assert len(await page.evaluate(f"seen.{name}.errors")) == before
    await page.evaluate("pass(1)")
    await page.until(f"seen.{name}.errors.length > {before}")
    noticed = (await page.evaluate(f"seen.{name}.errors"))[-1]
    assert (noticed["reason"], noticed["status"]) == ("nothing came for too long", None)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_gateway_that_never_answers_is_given_up_after_ten_seconds_at_each_attempt(
    chromium: Chromium, origin: GatewayProcess, frozen_port: int, transport: str
) -> None:
    options = {"transport": transport, "token": "t1", "url": f"http://{LOOPBACK}:{frozen_port}"}
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(CLOCK + LONGEST)
        await page.evaluate(f"watch('{transport}', {json.dumps(options)})")
        for delay_ms in (5_000, 10_000):
            await given_up_after_ten_seconds(page, transport)
            await page.evaluate(f"pass({delay_ms})")
            await page.until(f"seen.{transport}.connection.state === 'connecting'")
        assert await told(page, transport) == ["error", "error"]


async def test_a_gateway_that_is_silent_once_it_has_answered_is_given_up_after_ten_seconds(
    seat: WebSocketSeat | StreamSeat,
) -> None:
    await given_up_after_ten_seconds(seat.page, seat.name)
    await seat.page.evaluate("pass(5_000)")
    await seat.is_left_for_another()


async def test_while_the_second_is_not_answered_the_first_goes_on_and_another_is_tried(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page, scripted_gateway() as gateway:
        await page.evaluate(CLOCK + LONGEST)
        first = await connect(page, gateway)
        await first.send(control="hello", heartbeat_ms=60_000)
        gateway.admits.clear()
        await first.send(control="reconnect", after_ms=0, code=1001)
        await first.message("1")
        await data(page, 1)
        await page.evaluate("pass(0)")
        await eventually(lambda: gateway.asked == 2, "the second is on its way")
        await page.evaluate("pass(10_000)")
        await first.message("still here")
        assert await data(page, 2) == ["1", "still here"]
        await page.until("pass(0), timers.some(({at}) => at === now + 1_000)")
        await page.evaluate("pass(1_000)")
        await eventually(lambda: gateway.asked == 3, "it has tried again")
        assert await told(page, "ws") == ["open"]


async def test_an_answer_that_comes_slowly_is_no_silence(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(CLOCK + STREAMS)
        await watch(page, "poll", "t1", until_open=False)
        await page.until("streams.length")
        answer = '{"cursor": "c", "messages": [|{"id": "1", "type": null, |"data": "1"}]}'
        for part in answer.split("|"):
            await page.evaluate("pass(9_999)")
            await say(page, 0, part)
        await page.evaluate("streams[0].controller.close()")
        assert [message["id"] for message in await messages(page, "poll", 1)] == ["1"]
        assert await told(page, "poll") == ["open"]


async def test_a_poll_that_is_never_answered_is_given_up_ten_seconds_after_its_wait(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(
            CLOCK
            + """
            window.asked = 0;
            window.fetch = async (url, {signal}) => {
              asked += 1;
              if (asked === 1) return new Response('{"cursor": "c", "messages": []}');
              return new Promise((_, reject) => {
                signal.addEventListener('abort', () => reject(signal.reason));
              });
            };
            """
        )
        await watch(page, "poll", "t1")
        await page.until("asked === 2")
        await page.evaluate("pass(34_999)")
        assert await page.evaluate("seen.poll.errors") == []
        await page.evaluate("pass(1)")
        await page.until("seen.poll.errors.length")
        await page.evaluate("pass(5_000)")
        await page.until("asked === 3")


async def test_a_second_that_was_refused_says_nothing_about_the_end_of_the_first(
    chromium: Chromium, origin: GatewayProcess
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(GREETING_STREAMS)
        await watch(page, "sse", "t1")
        await page.evaluate(
            """window.fetch = async () => {
              window.refused = true;
              return new Response('', {status: 403});
            }"""
        )
        await say(page, 0, 'event: pushgate.reconnect\ndata: {"after_ms": 0}\n\n')
        await page.until("window.refused")
        assert await told(page, "sse") == ["open"]
        await say(page, 0, 'event: pushgate.close\ndata: {"code": 4001, "reason": "slow"}\n\n')
        said = await error(page, "sse")
        assert (said["reason"], said["status"]) == ("slow", None)


@pytest.mark.parametrize("close", CLOSES, ids=lambda close: str(close.code))
async def test_an_event_stream_ends_with_the_code_that_it_names(
    chromium: Chromium, origin: GatewayProcess, close: Any
) -> None:
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(GREETING_STREAMS + LONGEST)
        await page.evaluate(f"watch('sse', {{transport: 'sse', token: {tokens('t1', 't2')}}})")
        await page.until("seen.sse.connection.state === 'open'")
        goodbye = json.dumps({"code": close.code, "reason": close.reason})
        await say(page, 0, f"retry: 9000\n\nevent: pushgate.close\ndata: {goodbye}\n\n")
        said = await error(page, "sse")
        assert (said["retryIn"], said["reason"]) == (DELAYS[close.next], close.reason)
        assert await page.evaluate("streams[0].aborted")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refused_token_is_replaced_once(
    chromium: Chromium, origin: GatewayProcess, transport: str
) -> None:
    bad, worse = (token(user, secret="z" * 32) for user in ("alice", "bob"))
    good = token("alice")
    async with page_at(chromium, origin.port) as page:
        await page.evaluate(SHORTEST)
        for name, source in {
            "good": tokens(bad, good),
            "same": tokens(bad),
            "worse": tokens(bad, worse, good),
        }.items():
            await page.evaluate(f"watch('{name}', {{transport: '{transport}', token: {source}}})")
        await page.until("seen.good.connection.state === 'open'")
        await page.until("seen.same.connection.state === 'closed'")
        await page.until("seen.worse.connection.state === 'closed'")
        assert await told(page, "good") == ["error", "open"]
        assert await told(page, "same") == ["error", "close"]
        assert await told(page, "worse") == ["error", "error", "close"]
        assert await page.evaluate("seen.worse.errors.map(({retryIn}) => retryIn)") == [100, None]
