"""The pages of docs/getting-started.md as they stand there, on another origin than the gateway's.

The gateway is a real `pushgate dev`; `pushgate send` publishes the message. The projects that `npm
create vite` would make are in tests/support/docs/pages, with packages that a lock file pins.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

import httpx
import pytest

from pushgate.token import mint
from tests.browser.chromium import Chromium
from tests.browser.chromium import Page as Tab
from tests.browser.dev import DevProcess
from tests.support.markdown import ROOT, Page, pages
from tests.support.npm import install
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET, wait_until

pytestmark = pytest.mark.anyio

GETTING_STARTED: Final = Page(ROOT / "docs" / "getting-started.md")
PROJECTS: Final = ROOT / "tests" / "support" / "docs" / "pages"
CLIENT: Final = ROOT / "client"
USER: Final = "alice"
SAID: Final = "hello from Kafka"
BUILD_SECONDS: Final = 120.0


@pytest.fixture(scope="module")
def dev() -> Iterator[DevProcess]:
    process = DevProcess()
    process.env |= {"PUSHGATE_JWT_SECRET": JWT_SECRET, "PUSHGATE_INTERNAL_SECRET": INTERNAL_SECRET}
    with process:
        yield process


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the two projects with their packages installed, but for the client's."""
    folder = tmp_path_factory.mktemp("projects")
    if missing := install(PROJECTS, folder):
        pytest.skip(missing)
    return folder


@pytest.fixture(scope="module")
def built(projects: Path, dev: DevProcess) -> Path:
    """Give the folder of the two pages, built as a user builds them: types are checked first."""
    if not CLIENT.exists():
        pytest.skip("needs the package in client/")
    npm(projects, "install", "--no-save", str(packed_client(projects)))
    sources = projects / "src"
    sources.mkdir()
    for name, language, text in (("main.ts", "ts", "#app"), ("App.tsx", "tsx", "useEffect")):
        (sources / name).write_text(here(GETTING_STARTED.block(language, text).text, dev))
    (projects / ".env.local").write_text(f"VITE_PUSHGATE_TOKEN={token()}\n")
    npm(projects, "exec", "--", "tsc", "--project", ".")
    npm(projects, "exec", "--", "vite", "build")
    return projects / "dist"


@pytest.mark.parametrize("way", ["served", "opened as a file"])
async def test_a_plain_page_shows_the_message(
    way: str, chromium: Chromium, dev: DevProcess, tmp_path: Path
) -> None:
    text = here(GETTING_STARTED.block("html", "<ul").text, dev)
    (tmp_path / "index.html").write_text(text.replace("PASTE THE TOKEN HERE", token()))
    wait_until(lambda: not is_connected(dev), "the last test's page is gone")
    with served(tmp_path) as url:
        address = url if way == "served" else (tmp_path / "index.html").as_uri()
        async with chromium.page(address) as tab:
            await assert_shows_a_message(tab, dev)


@pytest.mark.parametrize("name", ["vite.html", "react.html"])
async def test_a_page_with_the_package_shows_the_message(
    name: str, built: Path, chromium: Chromium, dev: DevProcess
) -> None:
    wait_until(lambda: not is_connected(dev), "the last test's page is gone")
    with served(built) as url:
        async with chromium.page(f"{url}{name}") as tab:
            await assert_shows_a_message(tab, dev)


def test_all_typescript_in_the_pages_parses(projects: Path, tmp_path: Path) -> None:
    files = []
    for page in pages():
        for block in (b for b in page.blocks if b.language in ("ts", "tsx")):
            files.append(tmp_path / f"{page.name.replace('/', '-')}-{block.line}.{block.language}")
            files[-1].write_text(block.text)
    assert files
    checked = subprocess.run(
        ["node", "syntax.mjs", *files], cwd=projects, capture_output=True, text=True, check=True
    )
    assert checked.stdout == ""


async def assert_shows_a_message(tab: Tab, dev: DevProcess) -> None:
    """Publish once the user is connected; wait until the page has the text, once."""
    wait_until(lambda: is_connected(dev), f"{USER} is connected")
    send = [sys.executable, "-m", "pushgate", "send", USER, SAID]
    found = re.search(r"^ +Kafka +(\S+)", dev.log, re.MULTILINE)
    assert found is not None, dev.log
    env = os.environ | {"PUSHGATE_KAFKA_BOOTSTRAP": found[1]}
    await asyncio.to_thread(subprocess.run, send, env=env, check=True)
    await tab.until(f"document.body.innerText.includes({json.dumps(SAID)})")
    assert await tab.evaluate("document.body.innerText.trim()") == SAID
    assert tab.exceptions == []


def is_connected(dev: DevProcess) -> bool:
    url = f"http://127.0.0.1:{dev.operators_port}/push/{USER}"
    bearer = {"authorization": f"Bearer {INTERNAL_SECRET}"}
    return httpx.get(url, headers=bearer, trust_env=False).status_code == 200


def token() -> str:
    return mint(USER, JWT_SECRET, ttl_seconds=600, device=None)


def here(text: str, dev: DevProcess) -> str:
    """Give a page's text with this gateway's address."""
    assert "http://127.0.0.1:8080" in text
    return text.replace("http://127.0.0.1:8080", dev.url)


def packed_client(folder: Path) -> Path:
    """Pack the client as the page says, in a copy: a build leaves files; give the archive."""
    copy = folder / "client"
    shutil.copytree(CLIENT, copy, ignore=shutil.ignore_patterns("node_modules"))
    # The build may write the file that gateways serve, beside the package's folder.
    (folder / "gateway").mkdir()
    npm(copy, "ci", "--no-audit", "--no-fund", "--prefer-offline")
    npm(copy, "pack")
    (archive,) = copy.glob("pushgate-client-*.tgz")
    return archive


def npm(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["npm", *arguments],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder as `python3 -m http.server` does; give its address."""
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
