"""Pages that lose their node or their network get everything once: with Kafka and real nodes."""

import signal
import time
from typing import Final

import pytest

from tests.browser.balancer import Balancer, balancer_to
from tests.browser.chromium import Chromium, Page
from tests.browser.conftest import StartGateway, StartProcessor
from tests.browser.pages import SHORTEST, messages, page_at, told, watch
from tests.browser.publisher import SECONDS, Publisher, offline
from tests.support.clients import eventually, pusher_to, token
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

STREAMS: Final = ("ws", "sse")


async def came(page: Page, name: str, publisher: Publisher) -> list[str]:
    """Give the payloads that have come, once there are as many as were published."""
    await page.until(
        f"seen.{name}.messages.length >= {len(publisher.sent)}", timeout_seconds=SECONDS
    )
    return [message["data"] for message in await messages(page, name, 0)]


async def open_again(page: Page, name: str) -> None:
    """Return when the page was told again that it is open."""
    opens = f"seen.{name}.told.filter((said) => said === 'open').length === 2"
    await page.until(opens, timeout_seconds=SECONDS)


async def drained(gateway: GatewayProcess) -> None:
    """Have a node leave; return when it has left."""
    gateway.signal(signal.SIGTERM)
    await eventually(lambda: gateway.returncode is not None, "it has left", timeout_seconds=SECONDS)


async def killed(gateway: GatewayProcess, balancer: Balancer, publisher: Publisher) -> None:
    """Kill a node; messages that it has sent in its last moments are lost."""
    balancer.discards = True
    lost_from = len(publisher.sent)
    await eventually(lambda: len(publisher.sent) > lost_from + 20, "some are on their way")
    gateway.kill()
    await balancer.cut()
    balancer.discards = False


async def connections(gateway: GatewayProcess) -> int:
    """How many connections a node has."""
    async with pusher_to(gateway.internal_port) as pusher:
        return await pusher.connections()


@pytest.mark.parametrize("transport", STREAMS)
async def test_after_its_node_was_killed_a_page_gets_everything_once_and_no_gap(
    chromium: Chromium,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    publisher: Publisher,
    transport: str,
) -> None:
    doomed, other, processor = start_gateway("doomed"), start_gateway("other"), start_processor()
    await publisher.until_the_registry_is_sure(processor)
    async with balancer_to(doomed.port) as balancer, page_at(chromium, balancer.port) as page:
        await watch(page, transport, token(publisher.user))
        balancer.target = other.port
        async with publisher.steadily():
            await messages(page, transport, 20)
            await killed(doomed, balancer, publisher)
            await open_again(page, transport)
            await messages(page, transport, len(publisher.sent) + 20)  # live ones among them
        assert await came(page, transport, publisher) == publisher.sent
        assert await told(page, transport) == ["open", "error", "open"]


async def test_when_its_node_drains_a_page_gets_everything_once_and_no_gap(
    chromium: Chromium,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    publisher: Publisher,
) -> None:
    leaving, staying = start_gateway("leaving", drain_seconds=3), start_gateway("staying")
    await publisher.until_the_registry_is_sure(start_processor())
    async with balancer_to(leaving.port) as balancer, page_at(chromium, balancer.port) as page:
        for transport in STREAMS:
            await watch(page, transport, token(publisher.user))
        balancer.target = staying.port
        async with publisher.steadily():
            await messages(page, "ws", 5)
            await drained(leaving)
        for transport in STREAMS:
            assert await came(page, transport, publisher) == publisher.sent
            assert await told(page, transport) == ["open"]


@pytest.mark.parametrize("transport", STREAMS)
async def test_what_was_offline_while_a_page_was_cut_off_comes_when_it_is_back(
    chromium: Chromium,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    publisher: Publisher,
    transport: str,
) -> None:
    gateway, processor = start_gateway("node"), start_processor()
    await publisher.until_the_registry_is_sure(processor)
    async with balancer_to(gateway.port) as balancer, page_at(chromium, balancer.port) as page:
        await page.evaluate(SHORTEST)
        await watch(page, transport, token(publisher.user))
        await publisher.send(3)
        await messages(page, transport, 3)
        balancer.target = None
        await balancer.cut()

        async def is_gone() -> bool:
            return await connections(gateway) == 0

        async def were_for_nobody() -> bool:
            return await offline(processor) == 1 + 5

        await eventually(is_gone, "its node knows that it is gone")
        await publisher.send(5)
        await eventually(were_for_nobody, "five messages more for nobody")
        balancer.target = gateway.port
        await open_again(page, transport)
        await publisher.send(2)
        assert await came(page, transport, publisher) == publisher.sent
        opened, *errors, again = await told(page, transport)
        assert (opened, set(errors), again) == ("open", {"error"}, "open")


@pytest.mark.parametrize("transport", STREAMS)
async def test_after_too_long_an_absence_a_page_is_told_of_a_gap_once(
    chromium: Chromium,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    publisher: Publisher,
    transport: str,
) -> None:
    gateway = start_gateway("node", resume_seconds=3)
    start_processor(resume_seconds=3)
    async with balancer_to(gateway.port) as balancer, page_at(chromium, balancer.port) as page:
        await page.evaluate(SHORTEST)
        await watch(page, transport, token(publisher.user))
        balancer.target = None
        await balancer.cut()
        absent_until = time.monotonic() + 4
        await eventually(lambda: time.monotonic() > absent_until, "it was away for too long")
        balancer.target = gateway.port
        await open_again(page, transport)
        await publisher.send(2)
        assert await came(page, transport, publisher) == publisher.sent
        heard = [word for word in await told(page, transport) if word != "error"]
        assert heard == ["open", "open", "gap"]


#: A page without the library: what comes, and the id behind which it would resume.
EVENT_SOURCE: Final = """
window.source = new EventSource('/sse?token=%s');
window.came = [];
window.opens = 0;
window.gaps = 0;
source.onopen = () => { opens += 1; };
source.addEventListener('pushgate.gap', () => { gaps += 1; });
source.onmessage = ({data, lastEventId}) => came.push({data, lastEventId});
"""


async def test_an_event_source_of_the_browser_resumes_by_its_last_event_id(
    chromium: Chromium,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    publisher: Publisher,
) -> None:
    leaving = start_gateway("leaving", drain_seconds=1, reconnect_delay_seconds=0)
    doomed = start_gateway("doomed")
    await publisher.until_the_registry_is_sure(start_processor())
    async with balancer_to(leaving.port) as balancer, page_at(chromium, balancer.port) as page:
        await page.evaluate(EVENT_SOURCE % token(publisher.user))
        await page.until("opens === 1")
        balancer.target = doomed.port
        async with publisher.steadily():
            await page.until("came.length >= 5")
            await drained(leaving)
            await page.until("opens === 2", timeout_seconds=SECONDS)
            await page.until(f"came.length >= {len(publisher.sent) + 20}")  # live ones among them
            balancer.target = leaving.start().port
            await killed(doomed, balancer, publisher)
            await page.until("opens === 3", timeout_seconds=SECONDS)
            await page.until(f"came.length >= {len(publisher.sent) + 20}")
        await page.until(f"came.length >= {len(publisher.sent)}", timeout_seconds=SECONDS)
        found = await page.evaluate("came")
        assert [message["data"] for message in found] == publisher.sent
        assert all("," in message["lastEventId"] for message in found)
        assert await page.evaluate("gaps") == 0
