"""Scripts that stand in for gateways under `Workers` and `Succession`, and note what happens."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.clients import eventually

SECONDS: Final = 20.0

#: Each note is a line, with the worker's index in front. A script that takes over has the process
#: that serves end by SIGUSR1, as a gateway that was taken over from ends by itself.
NOTES: Final = """
import contextlib, os, pathlib, signal, sys
index = os.environ.get("PUSHGATE_WORKER_INDEX")
place = pathlib.Path(sys.argv[1])
serving = place.with_name(f"serving.{index}")
signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
def note(text):
    with open(place, "a") as file:
        file.write(f"{index} {text}\\n")
def lives():
    return place.read_text().splitlines().count(f"{index} lives")
def say(word):
    os.write(0, word.encode() + b"\\n")
def until_signals(count):
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    note("waits")
    for _ in range(count):
        note(signal.Signals(signal.sigwait(signals)).name)
def take_over():
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(serving.read_text()), signal.SIGUSR1)
def serve(leaving=1):
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    serving.write_text(str(os.getpid()))
    note(f"serves {os.environ.get('PUSHGATE_ORIGINS')}")
    say("READY=1")
    number = signal.sigwait(signals)
    note(signal.Signals(number).name)
    if number == signal.SIGUSR1:
        say("MAINPID=1")
    for _ in range(leaving - 1):
        note(signal.Signals(signal.sigwait(signals)).name)
"""


def scripted(body: str, notes: Path) -> Sequence[str]:
    """Give the command of a script with this body, which ends after a minute at the latest."""
    script = f"{NOTES}\nsignal.alarm(60)\nnote('lives')\n{body}"
    return [sys.executable, "-c", script, str(notes)]


def lines(notes: Path) -> list[str]:
    """Give all notes, sorted."""
    return sorted(notes.read_text().splitlines())


async def until_noted(notes: Path, *expected: str) -> None:
    """Return once all of `expected` are among the notes."""
    await eventually(
        lambda: set(expected) <= set(lines(notes)), str(expected), timeout_seconds=SECONDS
    )


def in_order(notes: Path) -> list[str]:
    """Give all notes in the order in which they were made."""
    return notes.read_text().splitlines()
