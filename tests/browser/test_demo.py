"""The demo page of a real `pushgate dev`, used as a person would, and refused to everyone else."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import ClassVar, Final

import httpx
import pytest

from pushgate.embedded import LOOPBACK
from tests.browser.chromium import Chromium, Page
from tests.support.processes import PushgateProcess, free_port, wait_until

pytestmark = pytest.mark.anyio

TRANSPORTS: Final = ("ws", "sse", "poll")


class DevProcess(PushgateProcess):
    """The whole system; what it keeps is in a temporary directory."""

    command: ClassVar[str] = "dev"

    def __init__(self) -> None:
        self.port = free_port()
        internal_port = free_port()
        env = {
            "PUSHGATE_PORT": str(self.port),
            "PUSHGATE_INTERNAL_PORT": str(internal_port),
            "PUSHGATE_PROCESSOR_PORT": str(free_port()),
        }
        super().__init__("dev", env, operators_port=internal_port)

    def wait_until_ready(self) -> None:
        """Return once it has said where the page is."""
        super().wait_until_ready()
        wait_until(lambda: f"demo page   {self.url}/" in self.log, "the demo page is announced")

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


@pytest.fixture(scope="module")
def dev() -> Iterator[DevProcess]:
    with DevProcess() as process:
        yield process


@asynccontextmanager
async def demo_page(chromium: Chromium, dev: DevProcess, user: str) -> AsyncIterator[Page]:
    """Open the page as `user`: tests share its system, so each has users of its own."""
    async with chromium.page(f"{dev.url}/") as page:
        await fill(page, user=user, to=user)
        await page.until(counter("registry", "no entry") + " === 'offline'")
        yield page
        assert page.exceptions == []


async def fill(page: Page, **values: str) -> None:
    for name, value in values.items():
        await page.evaluate(f"document.getElementById('{name}').value = {value!r}")
        await page.evaluate(f"document.getElementById('{name}').dispatchEvent(new Event('change'))")


async def connect_all(page: Page) -> None:
    await page.evaluate("document.getElementById('all').click()")
    await page.until("document.querySelectorAll('[data-state=open]').length === 3")


async def send(page: Page, payload: str, **values: str) -> None:
    await fill(page, payload=payload, **values)
    await page.evaluate("document.getElementById('sent').textContent = ''")
    await page.evaluate("document.getElementById('send').requestSubmit()")
    await page.until("document.getElementById('sent').textContent.startsWith('Kafka has it as')")


def counter(card: str, name: str) -> str:
    """An expression: the value shown in a card beside a name."""
    return f"document.querySelector('#{card} [data-name=\"{name}\"] dd')?.textContent"


async def value(page: Page, card: str, name: str) -> int:
    return int(await page.until(counter(card, name)))


async def test_a_message_goes_through_kafka_to_all_three_transports(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with demo_page(chromium, dev, "alice") as page:
        before = await value(page, "processor", "delivered")
        await connect_all(page)
        await send(page, "<img src=x onerror=alert(1)>", type="order.paid")
        for transport in TRANSPORTS:
            pane = f"document.querySelector('[data-transport={transport}]')"
            await page.until(f"{pane}.querySelector('li')")
            text = await page.evaluate(f"{pane}.querySelector('.text').textContent")
            assert text == "<img src=x onerror=alert(1)>"
            assert await page.evaluate(
                f"{pane}.querySelector('.meta b').textContent == 'order.paid'"
            )
            took = await page.evaluate(f"parseInt({pane}.querySelector('.took').textContent)")
            assert 0 <= took < 10_000
        assert await page.evaluate("document.images.length") == 0
        await page.until(f"{counter('processor', 'delivered')} === '{before + 1}'")
        await page.until("document.querySelector('#registry dd').textContent.includes(':')")
        for name in ("websocket", "sse", "poll"):
            assert await value(page, "gateway", name) >= 1
        assert await value(page, "kafka", "sent") == 1


async def test_a_message_for_someone_else_is_counted_and_not_shown(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with demo_page(chromium, dev, "bob") as page:
        offline = await value(page, "processor", "offline")
        await connect_all(page)
        await send(page, "for nobody", to="nobody")
        await page.until(f"{counter('processor', 'offline')} === '{offline + 1}'")
        assert await page.evaluate("document.querySelectorAll('.pane li').length") == 0


async def test_another_user_connects_in_place_of_the_first(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with demo_page(chromium, dev, "carol") as page:
        await connect_all(page)
        await fill(page, user="dave")
        await page.until("document.querySelectorAll('[data-state=open]').length === 3")
        states = "[...document.querySelectorAll('.state')].map((s) => s.textContent)"
        for transport, state in zip(TRANSPORTS, await page.evaluate(states), strict=True):
            assert state == f"connected to /{transport} as dave"
        await send(page, "", to="dave")
        await page.until("document.querySelectorAll('.pane li').length === 3")
        shown = await page.evaluate("document.querySelector('.pane li .text').textContent")
        assert shown == "(empty)"


async def test_a_page_that_stays_open_over_a_restart_shows_what_comes_then(
    chromium: Chromium,
) -> None:
    with DevProcess() as dev:
        async with demo_page(chromium, dev, "frank") as page:
            await connect_all(page)
            for payload in ("1", "2", "3"):
                await send(page, payload)
            await page.until("document.querySelectorAll('.pane .text').length === 9")
            dev.terminate()
            await page.until("!document.querySelector('[data-state=open]')")
            dev.start()
            await page.until("document.querySelectorAll('[data-state=open]').length === 3")
            await send(page, "of the new broker, whose offsets begin again")
            await page.until("document.querySelectorAll('.pane .text').length === 12")


async def test_the_page_fits_a_phone(chromium: Chromium, dev: DevProcess) -> None:
    async with demo_page(chromium, dev, "erin") as page:
        await page.resize(360, 740)
        await page.until("innerWidth === 360")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/", {"host": "[::1]:1"}, 200),
        ("GET", "/", {"host": "rebound.example"}, 403),
        ("GET", "/", {"host": "127.0.0.1.rebound.example"}, 403),
        ("GET", "/", {"host": ""}, 403),
        ("GET", "/demo/state?user=u", {}, 200),
        ("GET", "/demo/state?user=u", {"origin": "http://evil.example"}, 403),
        ("GET", "/demo/state?user=u", {"origin": "null"}, 403),
        ("GET", "/demo/state", {}, 400),
        ("POST", "/demo/token", {}, 403),
        ("POST", "/demo/token", {"origin": "http://evil.example"}, 403),
        ("POST", "/demo/token", {"origin": "http://localhost", "host": "127.0.0.1"}, 403),
        ("POST", "/demo/token", {"origin": "http://r.example", "host": "r.example"}, 403),
        ("POST", "/demo/token", {"origin": "http://localhost", "host": "localhost"}, 200),
        ("POST", "/demo/send", {"origin": "http://evil.example"}, 403),
    ],
)
async def test_only_its_own_page_on_this_machine_is_served(
    dev: DevProcess, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with httpx.AsyncClient(base_url=dev.url, trust_env=False) as http:
        content = b'{"user": "u", "payload": ""}' if method == "POST" else None
        answer = await http.request(method, path, headers=headers, content=content)
    assert answer.status_code == status, answer.text
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/demo/token", b"", 400),
        ("/demo/token", b'{"user": ""}', 400),
        ("/demo/token", b'{"user": "a\\u0000b"}', 400),
        ("/demo/token", b'{"user": "u", "device": ""}', 400),
        ("/demo/send", b'{"user": "u"}', 400),
        ("/demo/send", b'{"user": "u", "payload": "\\ud800"}', 400),
        ("/demo/send", b'{"user": "u", "payload": "", "headers": {"push-id": 1}}', 400),
        ("/demo/send", b'"' + b" " * 512 * 1024 + b'"', 413),
    ],
)
async def test_bad_bodies_are_refused(dev: DevProcess, path: str, body: bytes, status: int) -> None:
    async with httpx.AsyncClient(base_url=dev.url, trust_env=False) as http:
        answer = await http.post(path, content=body, headers={"origin": dev.url})
    assert answer.status_code == status, answer.text
