"""The demo page of a real `pushgate dev`, used as a person would, and refused to everyone else."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import pytest

from pushgate.demo.guard import PAGE_FIELD
from tests.browser.chromium import Chromium, Page
from tests.browser.dev import DevProcess
from tests.support.clients import eventually
from tests.support.npm import install

pytestmark = pytest.mark.anyio

TRANSPORTS: Final = ("ws", "sse", "poll")
OPEN: Final = "document.querySelectorAll('.pane[data-state=open]').length === {}"
WAY: Final = "document.querySelector('#ways > li')"
AXE: Final = Path(__file__).parent / "axe"


@asynccontextmanager
async def demo_page(
    chromium: Chromium, dev: DevProcess, user: str, *transports: str, others: tuple[str, ...] = ()
) -> AsyncIterator[Page]:
    """Open the demo page with clients of `user`: tests share its system, so each has its users."""
    clients = [f"{user}:{transport}" for transport in transports or TRANSPORTS] + list(others)
    query = urlencode([("client", client) for client in clients])
    async with chromium.page(f"{dev.url}/?{query}") as page:
        await page.until(OPEN.format(len(clients)))
        # A message that comes before the user's registration is offline, and replayed.
        await eventually(lambda: is_found(dev, user), f"a look-up finds {user}")
        await until_text(page, "#health", "everything answers")  # the ways of other tests are there
        yield page
        assert page.exceptions == []


async def fill(page: Page, **values: str) -> None:
    for name, value in values.items():
        field = f"document.getElementById('{name.replace('_', '-')}')"
        await page.evaluate(f"{field}.value = {value!r}")
        for event in ("input", "change"):
            await page.evaluate(f"{field}.dispatchEvent(new Event('{event}', {{bubbles: true}}))")


async def send(page: Page, payload: str, **values: str) -> None:
    await fill(page, payload=payload, **values)
    await page.evaluate("document.getElementById('sent').textContent = ''")
    await page.evaluate("document.getElementById('send').requestSubmit()")
    await page.until("document.getElementById('sent').textContent.startsWith('Kafka has')")


async def text_of(page: Page, selector: str) -> str:
    return str(await page.evaluate(f"document.querySelector({selector!r}).textContent"))


async def until_text(page: Page, selector: str, part: str) -> None:
    await page.until(f"document.querySelector({selector!r})?.textContent.includes({part!r})")


async def outcome(page: Page, name: str) -> str:
    """Give the text of the newest message's way, once its outcome is told."""
    await page.until(f"{WAY}?.querySelector('.chip.{name}')")
    return str(await page.evaluate(f"{WAY}.textContent"))


async def is_found(dev: DevProcess, user: str) -> bool:
    return bool(about(dev, user)["nodes"])


def connections_of(dev: DevProcess, user: str) -> list[dict[str, Any]]:
    listings = about(dev, user)["listings"]
    return [connection for listing in listings for connection in listing["connections"]]


def about(dev: DevProcess, user: str) -> dict[str, Any]:
    """Give what the state says of a user."""
    answer = httpx.get(f"{dev.url}/demo/state", params={"user": user}, trust_env=False).json()
    of_user: dict[str, Any] = answer["users"][user]
    return of_user


async def test_the_demo_page_is_connected_from_the_start_as_two_users(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with chromium.page(f"{dev.url}/") as page:
        await page.until(OPEN.format(3))
        users = await page.evaluate(
            "[...document.querySelectorAll('.pane')].map((p) => p.dataset.user).join()"
        )
        assert users == "alice,alice,bob"
        await until_text(page, "#health", "everything answers")
        assert page.exceptions == []


async def test_a_message_goes_through_kafka_to_all_three_transports(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with demo_page(chromium, dev, "ada") as page:
        await send(page, "<img src=x onerror=alert(1)>", type="order.paid")
        for transport in TRANSPORTS:
            pane = f"document.querySelector('[data-transport={transport}]')"
            await page.until(f"{pane}.querySelector('li')")
            text = await page.evaluate(f"{pane}.querySelector('.text').textContent")
            assert text == "<img src=x onerror=alert(1)>"
            kind = await page.evaluate(f"{pane}.querySelector('.meta b').textContent")
            assert kind == "order.paid"
            took = await page.evaluate(f"parseInt({pane}.querySelector('.took').textContent)")
            assert 0 <= took < 10_000
        assert await page.evaluate("document.images.length") == 0
        way = await outcome(page, "delivered")
        for part in ("Kafka push-", "processor ", "node ", "3 connections", " ms"):
            assert part in way
        await until_text(page, "#live-text", "3 messages arrived")


async def test_each_outcome_is_shown_with_its_reason(chromium: Chromium, dev: DevProcess) -> None:
    async with demo_page(chromium, dev, "bea", "ws") as page:
        await send(page, "for nobody", to="nobody")
        assert "had no connection" in await outcome(page, "offline")
        await send(page, "when?", to="bea", ttl="soon")
        assert "push-ttl: breaks a rule" in await outcome(page, "rejected")
        await send(page, "not yours", ttl="", device="another")
        assert "had no connection" in await outcome(page, "offline")
        assert await page.evaluate("document.querySelectorAll('.pane li').length") == 0


async def test_copies_are_one_way_and_as_many_messages(chromium: Chromium, dev: DevProcess) -> None:
    async with demo_page(chromium, dev, "cleo", "ws") as page:
        await send(page, "many", copies="300")
        await until_text(page, ".pane footer", "300 arrived")
        await until_text(page, "#ways > li", "delivered 300")
        assert (await page.evaluate("document.getElementById('ways').innerText")).count("cleo") == 1
        assert await page.evaluate("document.querySelectorAll('.pane li').length") == 100


async def test_messages_of_other_publishers_are_shown_too(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with (
        demo_page(chromium, dev, "dan", "ws") as page,
        httpx.AsyncClient(base_url=dev.url, trust_env=False) as http,
    ):
        body = {"user": "dan", "payload": "from elsewhere", "ids": ["elsewhere"]}
        headers = {"origin": dev.url, PAGE_FIELD: "test"}
        assert (await http.post("/demo/send", json=body, headers=headers)).status_code == 200
        await until_text(page, "#ways > li", "elsewhere")
        assert "to dan" in await outcome(page, "delivered")
        assert await text_of(page, ".pane .text") == "from elsewhere"


async def test_another_users_client_is_added_and_kept_over_a_reload(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with demo_page(chromium, dev, "eli", "ws") as page:
        await fill(page, add_user="fay", add_transport="sse", add_device="fays phone")
        await page.evaluate("document.getElementById('add').requestSubmit()")
        await page.until(OPEN.format(2))
        await send(page, "", to="fay", device="fays phone")
        await page.until("document.querySelector('[data-user=fay] li')")
        assert await text_of(page, "[data-user=fay] .text") == "(empty)"
        await page.open(f"{dev.url}/{await page.evaluate('location.search')}")
        await page.until(OPEN.format(2))
        assert await text_of(page, "[data-user=fay] small") == "fays phone"


async def test_a_connection_is_drained_and_ended_by_its_buttons(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with demo_page(chromium, dev, "gil", "ws", "sse") as page:
        await page.until("document.querySelectorAll('#connections li').length === 2")
        row = "document.querySelector('#connections [data-transport=websocket]')"
        assert await page.evaluate(f"{row}.textContent.includes('open, ')")
        await page.evaluate(f"{row}.querySelector('.drain').click()")
        await until_text(page, "#events", "handed over to a new connection")
        await until_text(page, "#acted", "1 told to reconnect (1001)")
        await page.until("document.querySelectorAll('#connections li').length === 2")
        await page.evaluate(f"{row}.querySelector('.disconnect').click()")
        await page.until("document.querySelector('[data-transport=ws][data-state=refused]')")
        await until_text(page, "#events", "closed with 4003, disconnected; stays away")
        await page.evaluate("document.getElementById('disconnect-all').click()")
        await page.until("document.querySelector('[data-transport=sse][data-state=refused]')")
        await until_text(page, "#registry", "nowhere: offline")
        await page.evaluate("document.querySelector('[data-transport=ws] .toggle').click()")
        await page.until(OPEN.format(1))


async def test_a_closed_tab_leaves_at_once(chromium: Chromium, dev: DevProcess) -> None:
    async with demo_page(chromium, dev, "hal"):
        assert len(connections_of(dev, "hal")) == 3

    async def is_gone() -> bool:
        return not connections_of(dev, "hal")

    # A poll session would wait for the next poll for PUSHGATE_POLL_GRACE_SECONDS, 30 s.
    await eventually(is_gone, "all connections of the closed tab are gone", timeout_seconds=5.0)


async def test_snippets_say_what_the_form_says(chromium: Chromium, dev: DevProcess) -> None:
    async with demo_page(chromium, dev, "ivy", "ws") as page:
        await fill(page, payload="it's", type="a b", ttl="60", collapse_key="k")
        for language, parts in {
            "kcat": ["echo 'it'\\''s' |", " -k ivy -H 'push-type=a b' -H push-ttl=60"],
            "pushgate": ["pushgate send ivy 'it'\\''s' --type 'a b' --ttl 60 --collapse-key k"],
            "Python": ['key="ivy"', 'value="it\'s"', '"push-type": "a b"'],
            "Browser": [f'<script src="{dev.url}/pushgate.js"></script>', "pushgate.connect("],
            "Token": ["pushgate token ivy"],
        }.items():
            await page.evaluate(f"document.querySelector('[value={language}]').click()")
            snippet = await text_of(page, "#snippet")
            for part in parts:
                assert part in snippet
        await page.evaluate("document.getElementById('mint').click()")
        await until_text(page, "#copied", "good for an hour")
        assert (await text_of(page, "#snippet")).count(".") == 2


async def test_a_page_that_stays_open_over_a_restart_shows_what_comes_then(
    chromium: Chromium,
) -> None:
    with DevProcess() as dev:
        async with demo_page(chromium, dev, "jan") as page:
            for payload in ("1", "2", "3"):
                await send(page, payload)
            await page.until("document.querySelectorAll('.pane .text').length === 9")
            await outcome(page, "delivered")
            dev.terminate()
            await page.until("!document.querySelector('.pane[data-state=open]')")
            await until_text(page, "#health", "does not answer")
            dev.start()
            await page.until(OPEN.format(3))
            await until_text(page, "#health", "everything answers")
            await send(page, "of the new broker, whose offsets begin again")
            await page.until("document.querySelectorAll('.pane .text').length === 12")
            assert "3 connections" in await outcome(page, "delivered")


# Everybody can use it


@pytest.mark.parametrize("width", [360, 800, 1400])
async def test_the_demo_page_fits_any_window(
    chromium: Chromium, dev: DevProcess, width: int
) -> None:
    async with demo_page(chromium, dev, "kim") as page:
        await page.resize(width, 800)
        await page.until(f"innerWidth === {width}")
        await send(page, "a" * 300, id="i" * 100)
        await outcome(page, "delivered")
        assert await page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the script of axe-core, a checker of accessibility, from npm; skip without npm."""
    folder = tmp_path_factory.mktemp("axe")
    missing = install(AXE, folder)
    if missing:
        pytest.skip(missing)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
async def test_a_checker_of_accessibility_finds_nothing(
    chromium: Chromium, dev: DevProcess, axe: str, scheme: str, width: int
) -> None:
    async with demo_page(chromium, dev, "lea") as page:
        await page.resize(width, 800)
        await page.prefer(scheme)
        await send(page, "for everyone", type="t")
        await outcome(page, "delivered")
        await send(page, "for nobody", to="nobody", ttl="soon")
        await outcome(page, "rejected")
        await page.until("document.querySelectorAll('#connections li').length === 3")
        # Colours that still move are between two colours.
        await page.until("document.getAnimations().every((a) => a.playState === 'finished')")
        await page.evaluate(f"{axe}; undefined")
        found = await page.evaluate("axe.run().then(({violations}) => JSON.stringify(violations))")
        violations = {
            each["id"]: [node["html"][:200] for node in each["nodes"]] for each in json.loads(found)
        }
        assert violations == {}


async def test_the_keyboard_reaches_everything_in_the_order_of_reading(
    chromium: Chromium, dev: DevProcess
) -> None:
    async with demo_page(chromium, dev, "mia", "ws") as page:
        await page.until("document.querySelectorAll('#connections li').length === 1")
        await page.evaluate("document.body.focus()")
        reached = []
        for _ in range(60):
            await page.press("Tab")
            name = await page.evaluate(
                "((e) => e.id || e.value || e.className || e.tagName)(document.activeElement)"
            )
            if name in reached:
                break
            reached.append(name)
        expected = [
            "skip", "to", "payload", "type", "device", "ttl", "collapse-key", "urgency", "id",
            "copies", "primary", "kcat", "snippet", "copy", "add-user", "add-transport",
            "add-device", "remove", "toggle", "who", "drain-all", "disconnect-all", "drain",
            "disconnect", "events",
        ]  # fmt: skip
        assert [name for name in reached if name in expected] == expected


# Nobody else can


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/", {"host": "[::1]:1"}, 200),
        ("GET", "/", {"host": "rebound.example"}, 403),
        ("GET", "/", {"host": "127.0.0.1.rebound.example"}, 403),
        ("GET", "/", {"host": ""}, 403),
        ("GET", "/demo/page.js", {"host": "rebound.example"}, 403),
        ("GET", "/demo/about", {}, 200),
        ("GET", "/demo/about", {"host": "rebound.example"}, 403),
        ("GET", "/demo/state?user=u", {}, 200),
        ("GET", "/demo/state?user=u", {"host": "rebound.example"}, 403),
        ("GET", "/demo/state?user=u", {"origin": "http://evil.example"}, 403),
        ("GET", "/demo/state?user=u", {"origin": "null"}, 403),
        ("GET", "/demo/state?user=", {}, 400),
        ("GET", "/demo/state?after=x", {}, 400),
        ("POST", "/demo/token", {}, 403),
        ("POST", "/demo/token", {"origin": "http://evil.example"}, 403),
        ("POST", "/demo/token", {"origin": "http://localhost", "host": "127.0.0.1"}, 403),
        ("POST", "/demo/token", {"origin": "http://r.example", "host": "r.example"}, 403),
        ("POST", "/demo/token", {"origin": "http://localhost", "host": "localhost"}, 403),
        (
            "POST",
            "/demo/token",
            {"origin": "http://localhost", "host": "localhost", PAGE_FIELD: "p"},
            200,
        ),
        ("POST", "/demo/send", {"origin": "http://evil.example", PAGE_FIELD: "p"}, 403),
        ("DELETE", "/demo/connections?user=u", {PAGE_FIELD: "p"}, 403),
        ("DELETE", "/demo/connections?user=u", {"origin": "http://[::1]", "host": "[::1]"}, 403),
    ],
)  # fmt: skip
async def test_only_its_own_page_on_this_machine_is_served(
    dev: DevProcess, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with httpx.AsyncClient(base_url=dev.url, trust_env=False) as http:
        content = b'{"user": "u", "payload": "", "ids": ["i"]}' if method == "POST" else None
        answer = await http.request(method, path, headers=headers, content=content)
    assert answer.status_code == status, answer.text
    assert "access-control-allow-origin" not in answer.headers


async def test_a_page_of_another_origin_may_not_ask_for_the_field(dev: DevProcess) -> None:
    async with httpx.AsyncClient(base_url=dev.url, trust_env=False) as http:
        headers = {
            "origin": "http://localhost:1",
            "access-control-request-method": "POST",
            "access-control-request-headers": PAGE_FIELD,
        }
        answer = await http.options("/demo/token", headers=headers)
    assert answer.status_code >= 400
    assert "access-control-allow-headers" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/demo/token", b"", 400),
        ("/demo/token", b'{"user": ""}', 400),
        ("/demo/token", b'{"user": "a\\u0000b"}', 400),
        ("/demo/token", b'{"user": "u", "device": ""}', 400),
        ("/demo/send", b'{"user": "u", "ids": ["i"]}', 400),
        ("/demo/send", b'{"user": "u", "payload": "", "ids": []}', 400),
        ("/demo/send", json.dumps({"user": "u", "payload": "", "ids": ["i"] * 1001}).encode(), 400),
        ("/demo/send", b'{"user": "u", "payload": "\\ud800", "ids": ["i"]}', 400),
        ("/demo/send", b'{"user": "u", "payload": "", "ids": ["i"], "headers": {"a": 1}}', 400),
        ("/demo/send", b'"' + b" " * 512 * 1024 + b'"', 413),
    ],
)
async def test_bad_bodies_are_refused(dev: DevProcess, path: str, body: bytes, status: int) -> None:
    async with httpx.AsyncClient(base_url=dev.url, trust_env=False) as http:
        headers = {"origin": dev.url, PAGE_FIELD: "test"}
        answer = await http.post(path, content=body, headers=headers)
    assert answer.status_code == status, answer.text


async def test_too_many_users_are_refused(dev: DevProcess) -> None:
    async with httpx.AsyncClient(base_url=dev.url, trust_env=False) as http:
        users = {"user": [f"u{number}" for number in range(21)]}
        assert (await http.get("/demo/state", params=users)).status_code == 400
