"""Pages with the browser client in them, and what its connections have told."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from pushgate.embedded import LOOPBACK
from tests.browser.chromium import Chromium, Page

TRANSPORTS: Final = ("ws", "sse", "poll")

#: With no jitter left, the delays are the bounds.
LONGEST: Final = "Math.random = () => 1"
SHORTEST: Final = "Math.random = () => 0"

#: Puts a connection and all it has told under `window.seen[name]`.
WATCH: Final = """
window.seen = {};
window.watch = (name, options) => {
  const connection = pushgate.connect(options);
  const seen = window.seen[name] = {connection, messages: [], told: [], errors: []};
  connection.onmessage = ({id, type, data}) => {
    seen.messages.push({id, type, data: typeof data === 'string' ? data : {bytes: [...data]}});
  };
  connection.onopen = () => seen.told.push('open');
  connection.ongap = () => seen.told.push('gap');
  connection.onclose = () => seen.told.push('close');
  connection.onerror = (error) => { seen.told.push('error'); seen.errors.push(error); };
};
"""


@asynccontextmanager
async def page_at(chromium: Chromium, port: int, *, host: str = LOOPBACK) -> AsyncIterator[Page]:
    """Open a page with the client; it is of the gateway's own origin, unless `host` is another."""
    async with chromium.page(f"http://{host}:{port}/healthz") as page:
        await page.evaluate(
            f"""new Promise((resolve, reject) => {{
              const script = document.createElement('script');
              script.src = 'http://{LOOPBACK}:{port}/pushgate.js';
              script.onload = resolve;
              script.onerror = () => reject(new Error('no script'));
              document.head.append(script);
            }})"""
        )
        await page.evaluate(WATCH)
        yield page


async def watch(
    page: Page,
    name: str,
    credential: str,
    *,
    transport: str | None = None,
    until_open: bool = True,
) -> None:
    """Connect under `name`, which is the transport's too unless another is given."""
    options = json.dumps({"transport": transport or name, "token": credential})
    await page.evaluate(f"watch('{name}', {options})")
    if until_open:
        await page.until(f"seen.{name}.connection.state === 'open'")


async def told(page: Page, name: str) -> list[str]:
    """Which handlers but onmessage have been called."""
    found: list[str] = await page.evaluate(f"seen.{name}.told")
    return found


async def messages(page: Page, name: str, count: int) -> list[dict[str, Any]]:
    """Give what a connection has got, once that is `count` messages."""
    await page.until(f"seen.{name}.messages.length >= {count}")
    found: list[dict[str, Any]] = await page.evaluate(f"seen.{name}.messages")
    return found


async def data(page: Page, count: int, name: str = "ws") -> list[str]:
    """Give what has come once `count` messages have."""
    return [message["data"] for message in await messages(page, name, count)]
