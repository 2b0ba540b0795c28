"""Tabs that share a connection: one holds it, and all get everything once, however a tab ends."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaProducer
from websockets.exceptions import ConnectionClosed

from tests.browser.chromium import Chromium, Page
from tests.browser.pages import WATCH
from tests.browser.publisher import Publisher
from tests.browser.sites import site
from tests.support.clients import eventually, pusher_to, token
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

#: Within two seconds another tab has the link, on a machine that is not busy.
TAKEN_SECONDS: Final = 6.0
SECONDS: Final = 40.0

#: `holds()`: the page has a WebSocket that is open.
SOCKETS: Final = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...args) {
    super(...args);
    sockets.push(this);
  }
};
window.holds = () => sockets.some(({readyState}) => readyState === WebSocket.OPEN);
window.addEventListener('pageshow', ({persisted}) => { window.wasCached = persisted; });
"""


#: The global of `/pushgate.js`, made of the package's module.
CONNECT: Final = """
import {PushClient} from '/index.js';
window.pushgate = {connect: (options) => {
  const client = new PushClient('http://127.0.0.1:%d/', options);
  const connection = {
    get state() { return client.state; },
    close: () => client.close(),
  };
  for (const name of ['open', 'gap', 'close', 'error']) {
    client.addEventListener(name, (event) => connection[`on${name}`]?.(event));
  }
  client.addEventListener('message', ({message}) => connection.onmessage?.(message));
  return connection;
}};
"""


System = tuple[GatewayProcess, ProcessorProcess]


@pytest.fixture(scope="module")
def system(valkey: RedisServer, kafka: KafkaServer, module_topic: str) -> Iterator[System]:
    """Give a gateway that admits pages of a loopback host, and a processor of the topic."""
    gateway = GatewayProcess(
        f"tabs-{module_topic}", redis_url=valkey.url, origins="http://localhost:*"
    )
    processor = ProcessorProcess(
        "processor",
        redis_url=valkey.url,
        bootstrap=kafka.bootstrap,
        topic=module_topic,
        group=f"group-{module_topic}",
    )
    with gateway, processor:
        yield gateway, processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the application's files."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def module_url(folder: Path, package: Path, page_url: str, gateway: GatewayProcess) -> str:
    """Give the address of a page with the package's module, beside the package's worker."""
    for name in ("index.js", "worker.js"):
        shutil.copy(package / "dist" / name, folder)
    Path(folder, "module.html").write_text(
        f"<!doctype html><title>tab</title><script type=module>{CONNECT % gateway.port}</script>"
        f"<script>{WATCH}{SOCKETS}</script>"
    )
    return page_url.replace("index", "module")


@pytest.fixture(scope="module")
def page_url(system: System, folder: Path) -> Iterator[str]:
    """Give the address of a page of an application, with `/pushgate.js` of another origin."""
    script = f"http://127.0.0.1:{system[0].port}/pushgate.js"
    Path(folder, "index.html").write_text(
        f"<!doctype html><title>tab</title><script src={script}></script>"
        f"<script>{WATCH}{SOCKETS}</script>"
    )
    Path(folder, "elsewhere.html").write_text("<!doctype html><title>elsewhere</title>")
    with site(folder) as origin:
        yield f"{origin}/index.html"


@pytest.fixture
async def publisher(
    kafka: KafkaServer,
    module_topic: str,
    system: System,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Publisher]:
    """Give what publishes to a user whom no other test has."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    await producer.start()
    found = Publisher(producer, module_topic)
    found.user = f"user of {request.node.name}"
    await found.until_the_registry_is_sure(system[1])
    yield found
    await producer.stop()


@pytest.fixture(scope="module")
def gateway(system: System) -> GatewayProcess:
    """Give the gateway."""
    return system[0]


async def connections(gateway: GatewayProcess) -> int:
    """How many connections the gateway has."""
    async with pusher_to(gateway.internal_port) as pusher:
        return await pusher.connections()


@asynccontextmanager
async def tabs(
    chromium: Chromium, url: str, user: str, count: int, **options: Any
) -> AsyncIterator[list[Page]]:
    """Open so many tabs that share a connection; all are open inside."""
    async with AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(chromium.page(url)) for _ in range(count)]
        given = json.dumps({"token": token(user), "shared": True, "transport": "ws"} | options)
        for page in pages:
            await page.evaluate(f"watch('tab', {given})")
        for page in pages:
            await page.until("seen.tab.connection.state === 'open'")
        yield pages


async def holders(pages: Sequence[Page]) -> list[Page]:
    """Which pages have an open WebSocket."""
    held = await asyncio.gather(*(page.evaluate("holds()") for page in pages))
    return [page for page, holds in zip(pages, held, strict=True) if holds]


async def the_holder(pages: Sequence[Page]) -> Page:
    """Give the page that holds the link, once there is one."""

    async def is_one() -> bool:
        return len(await holders(pages)) == 1

    await eventually(is_one, "one page holds the link", timeout_seconds=SECONDS)
    return (await holders(pages))[0]


async def assert_everything_once(pages: Sequence[Page], publisher: Publisher) -> None:
    """Each page has got what was published, in order, and has been told of no gap."""
    for page in pages:
        last = publisher.sent[-1]
        await page.until(f"seen.tab.messages.at(-1)?.data === '{last}'", timeout_seconds=SECONDS)
        messages = await page.evaluate("seen.tab.messages.map(({data}) => data)")
        assert messages == publisher.sent
        assert "gap" not in await page.evaluate("seen.tab.told")


async def test_ten_tabs_have_one_connection_and_all_messages(
    chromium: Chromium, page_url: str, gateway: GatewayProcess, publisher: Publisher
) -> None:
    async with tabs(chromium, page_url, publisher.user, 10) as pages:
        await publisher.send(20)
        await assert_everything_once(pages, publisher)
        assert len(await holders(pages)) == 1
        assert await connections(gateway) == 1


async def closed(page: Page) -> None:
    """Close a tab."""
    with suppress(ConnectionClosed):
        await page.close()


async def crashed(page: Page) -> None:
    """Kill a tab's process."""
    await page.crash()


async def frozen(page: Page) -> None:
    """Have the browser freeze a tab."""
    await page.freeze()


async def hung(page: Page) -> None:
    """Have a tab's script run for six seconds: it answers nobody, and is not told of it."""
    await page.evaluate(
        "setTimeout(() => { const end = Date.now() + 6000; while (Date.now() < end); })"
    )


@pytest.mark.parametrize("end", [closed, crashed, frozen, hung])
@pytest.mark.parametrize("count", [2, 10])
async def test_when_the_tab_with_the_link_ends_another_has_it_and_nothing_is_missed(
    chromium: Chromium,
    page_url: str,
    publisher: Publisher,
    end: Callable[[Page], Awaitable[None]],
    count: int,
) -> None:
    async with tabs(chromium, page_url, publisher.user, count) as pages:
        async with publisher.steadily():
            holder = await the_holder(pages)
            others = [page for page in pages if page is not holder]
            await others[0].until("seen.tab.messages.length >= 10")
            await end(holder)
            began = time.monotonic()
            await the_holder(others)
            taken_seconds = time.monotonic() - began
            after = len(publisher.sent)
            await others[0].until(f"seen.tab.messages.length >= {after + 10}")
        await assert_everything_once(others, publisher)
        assert taken_seconds < TAKEN_SECONDS
        if end is hung:
            await assert_everything_once([holder], publisher)
            assert len(await holders(pages)) == 1


async def test_a_tab_that_thaws_gets_what_it_missed_and_no_tab_anything_twice(
    chromium: Chromium, page_url: str, gateway: GatewayProcess, publisher: Publisher
) -> None:
    async with tabs(chromium, page_url, publisher.user, 3) as pages:
        holder = await the_holder(pages)
        others = [page for page in pages if page is not holder]
        async with publisher.steadily():
            await holder.until("seen.tab.messages.length >= 10")
            for page in (holder, others[0]):
                await page.freeze()
            before = len(publisher.sent)
            await others[1].until(f"seen.tab.messages.length >= {before + 30}")
            for page in (holder, others[0]):
                await page.thaw()
        await assert_everything_once(pages, publisher)
        assert await the_holder(pages)
        assert await connections(gateway) == 1


async def test_with_a_worker_tabs_that_close_and_freeze_disturb_nobody(
    chromium: Chromium, module_url: str, gateway: GatewayProcess, publisher: Publisher
) -> None:
    async with tabs(chromium, module_url, publisher.user, 3, workerUrl="/worker.js") as pages:
        closing, freezing, staying = pages
        async with publisher.steadily():
            await staying.until("seen.tab.messages.length >= 10")
            await freezing.freeze()
            await closed(closing)
            before = len(publisher.sent)
            await staying.until(f"seen.tab.messages.length >= {before + 30}")
            await freezing.thaw()
        await assert_everything_once([freezing, staying], publisher)
        assert await holders([freezing, staying]) == []
        assert await connections(gateway) == 1


async def test_without_the_worker_file_tabs_share_by_themselves(
    chromium: Chromium, module_url: str, gateway: GatewayProcess, publisher: Publisher
) -> None:
    async with tabs(chromium, module_url, publisher.user, 2, workerUrl="/missing.js") as pages:
        await publisher.send(3)
        await assert_everything_once(pages, publisher)
        assert len(await holders(pages)) == 1
        assert await connections(gateway) == 1


async def test_tabs_of_two_users_share_nothing(
    chromium: Chromium, page_url: str, gateway: GatewayProcess, publisher: Publisher
) -> None:
    async with (
        tabs(chromium, page_url, publisher.user, 1) as own,
        tabs(chromium, page_url, "somebody else", 1) as other,
    ):
        await publisher.send(3)
        await assert_everything_once(own, publisher)
        assert await connections(gateway) == 2
        assert await other[0].evaluate("seen.tab.messages") == []


@pytest.mark.parametrize("shared", [True, False])
async def test_a_page_out_of_the_back_forward_cache_gets_what_it_missed(
    chromium: Chromium, page_url: str, publisher: Publisher, shared: bool
) -> None:
    elsewhere = page_url.replace("index", "elsewhere")
    async with tabs(chromium, page_url, publisher.user, 2, shared=shared) as [page, other]:
        await publisher.send(3)
        await page.until("seen.tab.messages.length === 3")
        await page.open(elsewhere)
        await publisher.send(3)
        await other.until("seen.tab.messages.length === 6")
        await page.back()
        assert await page.evaluate("wasCached")
        await publisher.send(3)
        await assert_everything_once([page, other], publisher)
