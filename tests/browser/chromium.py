"""A real Chromium without a window, driven over the DevTools protocol.

The protocol is JSON over a WebSocket, which `websockets` speaks already: a driver of browsers would
add a dozen packages for the four commands that are used here.
"""

import asyncio
import base64
import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from websockets.asyncio.client import ClientConnection, connect

from pushgate.embedded import LOOPBACK, tied_to_parent

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
SECONDS: Final = 20.0
"""How long a page may take for what a test waits for: a cold browser on a busy machine is slow."""

_POLL_SECONDS: Final = 0.05
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # as root, in containers; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--ignore-certificate-errors",  # the certificates are made for a test
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class BrowserError(Exception):
    """The browser did not start, or a script in it failed."""


def chromium_binary() -> str | None:
    """Find the browser in the PATH."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Chromium:
    """One browser process with a profile of its own. A context manager."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._profile = tempfile.TemporaryDirectory(
            prefix="pushgate-chromium-", ignore_cleanup_errors=True
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        profile = Path(self._profile.name)
        with Path(profile, "log").open("wb") as log:
            self._process = subprocess.Popen(
                tied_to_parent([self._binary, *_FLAGS, f"--user-data-dir={profile}"]),
                env=os.environ | {"TMPDIR": str(profile)},  # it leaves more than its profile
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        written = profile / "DevToolsActivePort"
        deadline = time.monotonic() + START_SECONDS
        while not (written.exists() and written.read_text()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = Path(profile, "log").read_text(errors="replace")[-2_000:]
                raise BrowserError(f"{self._binary} did not start: {tail}")
            time.sleep(_POLL_SECONDS)
        self._port = int(written.read_text().split()[0])

    def stop(self) -> None:
        """End it and all its helpers, and remove the profile. Harmless when repeated."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            _end_group(process.pid)
            process.wait()
        self._profile.cleanup()

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator["Page"]:
        """Open `url` in a new tab; it has loaded inside."""
        target = await asyncio.to_thread(self._target, "PUT", "/json/new?about:blank")
        address = target["webSocketDebuggerUrl"]
        try:
            async with connect(address, max_size=None, proxy=None) as connection:
                page = Page(connection)
                await page.open(url)
                yield page
        finally:
            await asyncio.to_thread(self._target, "GET", f"/json/close/{target['id']}")

    def _target(self, method: str, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=SECONDS)
        try:
            connection.request(method, path)
            answer = connection.getresponse().read()
        finally:
            connection.close()
        return json.loads(answer) if answer.startswith(b"{") else {}


def _end_group(group: int) -> None:
    """Kill what is left of the browser's processes, which still write into its profile."""
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)  # its session is its own: see _start
            time.sleep(_POLL_SECONDS)


class Page:
    """One tab. One command at a time."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.exceptions: list[str] = []
        """What scripts of the page have thrown and nothing has caught."""

    async def open(self, url: str) -> None:
        """Go to `url` and return when it has loaded, with whatever status."""
        await self._command("Runtime.enable")
        answer = await self._command("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        await self.until(f"location.href !== 'about:blank' && {_LOADED}")

    async def evaluate(self, expression: str) -> Any:
        """Give the value of `expression`, awaited where it is a promise.

        Raises:
            BrowserError: it threw.
        """
        answer = await self._command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(_description(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, expression: str, *, timeout_seconds: float = SECONDS) -> Any:
        """Return the value of `expression` once it is true; AssertionError where it never is."""
        deadline = time.monotonic() + timeout_seconds
        # JavaScript's idea of false: an element is true, and arrives as {}.
        while (value := await self.evaluate(expression)) in (None, False, 0, ""):
            assert time.monotonic() < deadline, f"not in {timeout_seconds:g} s: {expression}"
            await asyncio.sleep(_POLL_SECONDS)
        return value

    async def go_offline(self) -> None:
        """Let every new request of the page fail, and tell the page of it."""
        await self._set_network(offline=True)

    async def go_online(self) -> None:
        """Undo `go_offline`."""
        await self._set_network(offline=False)

    async def _set_network(self, *, offline: bool) -> None:
        await self._command("Network.enable")
        await self._command(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    async def resize(self, width: int, height: int) -> None:
        """Give the page a window of this size."""
        await self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    async def prefer(self, scheme: str) -> None:
        """Let the reader prefer light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self._command("Emulation.setEmulatedMedia", features=[feature])

    async def press(self, key: str) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            code = {"Tab": 9}[key]
            await self._command(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
            )

    async def freeze(self) -> None:
        """Stop the page's clock, as the browser does with a tab in the background."""
        await self._command("Page.setWebLifecycleState", state="frozen")

    async def thaw(self) -> None:
        """Let a frozen page go on."""
        await self._command("Page.setWebLifecycleState", state="active")

    async def crash(self) -> None:
        """Kill the page's process; no command is answered from then on."""
        await self._connection.send(json.dumps({"id": 0, "method": "Page.crash"}))

    async def close(self) -> None:
        """Close the tab, as its user would."""
        await self._command("Page.close")

    async def back(self) -> None:
        """Go back to the page before, and return when that is there."""
        history = await self._command("Page.getNavigationHistory")
        before = history["entries"][history["currentIndex"] - 1]
        await self._command("Page.navigateToHistoryEntry", entryId=before["id"])
        await self.until(f"location.href === {json.dumps(before['url'])} && {_LOADED}")

    async def screenshot(self) -> bytes:
        """Give a picture of all of the page, as PNG: for people who work on it."""
        answer = await self._command("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def _command(self, method: str, **params: object) -> dict[str, Any]:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        async with asyncio.timeout(SECONDS):
            await self._connection.send(json.dumps(command))
            while True:
                answer = json.loads(await self._connection.recv())
                if answer.get("method") == "Runtime.exceptionThrown":
                    self.exceptions.append(_description(answer["params"]["exceptionDetails"]))
                if answer.get("id") == number:
                    break
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result


_LOADED: Final = "document.readyState === 'complete'"


def _description(details: dict[str, Any]) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description") or thrown.get("value") or details.get("text"))
