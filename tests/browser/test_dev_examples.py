"""The five examples, each beside a real `pushgate dev`, in pages of several users."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from pushgate.embedded import LOOPBACK, tied_to_parent
from tests.browser.chromium import Chromium, Page
from tests.browser.dev import DevProcess
from tests.support.processes import free_port, http_status, wait_until

pytestmark = pytest.mark.anyio

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
NAMES: Final = ("chat", "editor", "game", "news", "ticker")
MOST_LINES: Final = 60


@contextmanager
def example(dev: DevProcess, name: str) -> Iterator[str]:
    """Run an example's server where `dev` runs; give its URL."""
    port = free_port()
    with (dev.directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            tied_to_parent([sys.executable, str(EXAMPLES / name / "server.py")]),
            cwd=dev.directory,
            env=os.environ | {"PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: http_status(port, "/") == 200, f"the {name} serves its page")
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.kill()
        process.wait()


Start = Callable[[str], str]


@pytest.fixture
def start(dev: DevProcess) -> Iterator[Start]:
    """Give a function that starts an example by its name, for the test's time."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(example(dev, name))


@asynccontextmanager
async def page_of(chromium: Chromium, url: str, query: str, *, state: str) -> AsyncIterator[Page]:
    """Open an example's page, until its state says that it is connected."""
    async with chromium.page(f"{url}/?{query}") as page:
        await page.until(f"document.getElementById('state').textContent.includes({state!r})")
        yield page
        assert page.exceptions == []


def texts(selector: str) -> str:
    """An expression: the texts of elements, joined by |."""
    return f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent).join('|')"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["server.py", "page.html"])
def test_an_example_is_small(name: str, side: str) -> None:
    lines = (EXAMPLES / name / side).read_text().splitlines()
    assert len(lines) <= MOST_LINES


async def test_in_the_chat_everybody_reads_what_one_says_and_newcomers_what_was_said(
    chromium: Chromium, start: Start
) -> None:
    url = start("chat")
    async with (
        page_of(chromium, url, "user=alice", state="connected as alice") as alice,
        page_of(chromium, url, "user=bob", state="connected as bob") as bob,
    ):
        for page, line in ((alice, "<b>hello</b>"), (bob, "hello alice")):
            await page.evaluate(f"document.getElementById('text').value = {line!r}")
            await page.evaluate("document.querySelector('form').requestSubmit()")
            for reader in (alice, bob):
                await reader.until(f"{texts('#lines li')}.includes({line!r})")
        said = "alice: <b>hello</b>|bob: hello alice"
        assert await alice.evaluate(texts("#lines li")) == said
        async with page_of(chromium, url, "user=carol", state="connected as carol") as carol:
            assert await carol.evaluate(texts("#lines li")) == said


async def test_a_headline_reaches_the_subscribers_of_its_section_alone(
    chromium: Chromium, start: Start
) -> None:
    url = start("news")
    waiting = "waiting for headlines"
    async with (
        page_of(chromium, url, "user=ann&section=sport", state=waiting) as sport,
        page_of(chromium, url, "user=ben&section=world", state=waiting) as world,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        for section, headline in (("sport", "They won"), ("world", "It rained")):
            form = {"section": section, "headline": headline}
            answer = await http.post("/publish", data=form)
            assert (answer.status_code, answer.json()) == (202, {"subscribers": 1})
        for page, headline in ((sport, "They won"), (world, "It rained")):
            await page.until(f"{texts('#headlines li')} === {headline!r}")


async def test_prices_come_all_the_time_and_are_those_of_the_exchange(
    chromium: Chromium, start: Start
) -> None:
    url = start("ticker")
    async with page_of(chromium, url, "user=dora", state="live for dora") as page:
        await page.until("Number(document.getElementById('count').textContent) >= 20")
        assert await page.evaluate(texts("#prices th")) == "ACME|GLOBEX|HOOLI|INITECH"
        shown = (await page.evaluate(texts("#prices td"))).split("|")
        for price, opening in zip(map(float, shown), (41.0, 120.0, 77.5, 12.25), strict=True):
            assert opening / 2 < price < opening * 2


async def test_moves_of_both_players_are_on_both_boards_and_a_wrong_one_on_none(
    chromium: Chromium, start: Start
) -> None:
    url = start("game")

    async def click(page: Page, field: int) -> None:
        await page.evaluate(f"document.querySelectorAll('#board button')[{field}].click()")

    async with (
        page_of(chromium, url, "user=eva", state="you are eva") as eva,
        page_of(chromium, url, "user=finn", state="you are finn") as finn,
    ):
        await click(finn, 0)  # not his turn
        moves = ((eva, 4, "X"), (finn, 0, "O"), (eva, 8, "X"))
        for player, field, sign in moves:
            await click(player, field)
            for page in (eva, finn):
                button = f"document.querySelectorAll('#board button')[{field}]"
                await page.until(f"{button}.textContent === {sign!r}")
        for page in (eva, finn):
            assert await page.evaluate(texts("#board button")) == "O||||X||||X"
        assert await eva.evaluate(texts("#state")) == "move 4: O"


async def test_an_edit_and_a_cursor_are_seen_by_the_other_editor(
    chromium: Chromium, start: Start
) -> None:
    url = start("editor")
    line = "document.querySelectorAll('#lines input')[{}]"
    async with (
        page_of(chromium, url, "user=gus", state="writing as gus") as gus,
        page_of(chromium, url, "user=hana", state="writing as hana") as hana,
    ):
        await gus.evaluate(f"{line.format(2)}.dispatchEvent(new Event('focus'))")
        await hana.until(f"{texts('#lines small')} === '||gus|'")
        await gus.evaluate(f"{line.format(1)}.value = 'there was a gateway'")
        await gus.evaluate(f"{line.format(1)}.dispatchEvent(new Event('input'))")
        await hana.until(f"{line.format(1)}.value === 'there was a gateway'")
        await hana.until(f"{texts('#lines small')} === '|gus||'")
        assert await gus.evaluate(f"{line.format(0)}.value") == "Once upon a time"
