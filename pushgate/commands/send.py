"""`pushgate send`."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import click

from processor.outcomes.outcome import Kind
from processor.reading.kafka import KafkaError
from pushgate import standard_input
from pushgate.commands.running import json_option, load_settings, print_json, run
from pushgate.options import settings_options
from pushgate.outcomes import Report, in_words, watching
from pushgate.printable import printable
from pushgate.publish import Publisher, as_bytes, check_record, coordinates_of, publisher
from pushgate.seconds import Seconds
from pushgate.settings import DEV_FILE, SendSettings
from pushgate.topics import UnreadableTopic
from registry.message import URGENCIES, RejectedRecord

#: The exit status by outcome; 1 is the status of an error, 2 of wrong usage.
_STATUS: Final = {
    Kind.DELIVERED.value: 0,
    Kind.OFFLINE.value: 3,
    Kind.EXPIRED.value: 4,
    Kind.REPLACED.value: 5,
    Kind.REJECTED.value: 6,
    Kind.FAILED.value: 7,
}
_NO_OUTCOME: Final = 8
#: Records that Kafka has not acknowledged yet, at most.
_MOST_UNACKNOWLEDGED: Final = 1_000
_ONE_ID: Final = "--id names one message: a second with the same id is a repeat, and not delivered"


class _BreaksRule(click.ClickException):
    exit_code = _STATUS[Kind.REJECTED.value]


@dataclass(frozen=True, slots=True)
class _Messages:
    """The messages of one call: `payload`, `repeat` times, or the lines of standard input."""

    user: str
    headers: Mapping[str, str]
    payload: bytes | None  # None: of standard input
    repeat: int
    max_payload_bytes: int

    async def payloads(self) -> AsyncIterator[bytes]:
        """Yield the payloads, checked by the rules of processors.

        Raises:
            _BreaksRule: processors would reject the message.
            click.UsageError: a second message would have the same id.
        """
        if self.payload is not None:
            self.check(self.payload)
            for _ in range(self.repeat):
                yield self.payload
            return
        number = 0
        async for line in standard_input.lines():
            number += 1
            if number > 1 and "push-id" in self.headers:
                raise click.UsageError(f"line {number}: {_ONE_ID}")
            self.check(line, where=f"line {number}: ")
            for _ in range(self.repeat):
                yield line

    def check(self, payload: bytes, *, where: str = "") -> None:
        """Check a message by the rules of processors.

        Raises:
            _BreaksRule: processors would reject the record.
        """
        limit = self.max_payload_bytes
        try:
            check_record(self.user, payload, self.headers, max_payload_bytes=limit)
        except RejectedRecord as error:
            raise _BreaksRule(f"{where}not sent, since a rule is broken: {error}") from error

    @property
    def number(self) -> int | None:
        """How many messages there are; None for lines of standard input."""
        return None if self.payload is None else self.repeat


@click.command(
    epilog="Exit status: 0 sent, or with --wait delivered; 1 an error; 2 wrong usage; 3 offline; 4 "
    "expired; 5 replaced; 6 rejected, or not sent since a rule is broken; 7 failed; 8 no outcome "
    "in time. Of several messages the greatest status counts."
)
@click.argument("user")
@click.argument("payload", required=False)
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A file whose bytes are the payload.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(min=1), default=1, help="Send it so many times.")
@click.option("--id", "push_id", help="Message id; Kafka's coordinates where none is given.")
@click.option("--type", "push_type", help="The client's event name.")
@click.option("--ttl", "push_ttl", type=click.IntRange(min=0), help="Seconds it is worth sending.")
@click.option("--urgency", "push_urgency", type=click.Choice(sorted(URGENCIES)), help="Urgency.")
@click.option("--collapse-key", "push_collapse_key", help="A newer one replaces an older one.")
@click.option("--device", "push_device", help="One device of the user only.")
@click.option("--wait", is_flag=True, help="Wait for the outcome, print it, and exit with it.")
@click.option("--timeout", type=Seconds(min=0), default=60.0, show_default=True,
              help="How long to wait for an outcome, seconds.")  # fmt: skip
@json_option
@settings_options(SendSettings)
def send(  # noqa: PLR0917 - click passes options by keyword
    user: str,
    payload: str | None,
    file: Path | None,
    repeat: int,
    wait: bool,
    timeout: float,
    as_json: bool,
    **flags: Any,
) -> None:
    """Publish PAYLOAD for USER through Kafka; - reads standard input, a line a message.

    A record that processors would reject is not sent, and the broken rule is named.
    """
    headers = {
        name.replace("_", "-"): str(value)
        for name in [name for name in flags if name.startswith("push_")]
        if (value := flags.pop(name)) is not None
    }
    settings = load_settings(SendSettings, flags, files=(DEV_FILE,))
    if repeat > 1 and "push-id" in headers:
        raise click.UsageError(_ONE_ID)
    data = _payload(payload, file)
    messages = _Messages(user, headers, data, repeat, settings.max_payload_bytes)
    if data is not None:
        messages.check(data)  # before Kafka is looked for
    sending = _Sending(messages, settings, as_json=as_json)
    try:
        run(sending.send_and_wait(timeout) if wait else sending.send())
    except KafkaError as error:
        raise click.ClickException(f"Kafka at {settings.kafka_bootstrap}: {error}") from error
    except UnreadableTopic as error:
        raise click.ClickException(f"nothing was sent: {error}") from error
    sys.exit(sending.status)


def _payload(payload: str | None, file: Path | None) -> bytes | None:
    """Return the payload; None for lines of standard input."""
    if (payload is None) == (file is None):
        raise click.UsageError("give a PAYLOAD (- for lines of standard input), or --file")
    if file is not None:
        return file.read_bytes()
    return None if payload is None or payload == "-" else as_bytes(payload)


class _Results:
    """Prints a line a message; for many messages on a terminal a bar, and a summary at the end."""

    def __init__(self, number: int | None, *, as_json: bool) -> None:
        """`number` is how many messages there are, None for lines of standard input."""
        self._as_json = as_json
        self._counts: Counter[str] = Counter()
        is_many = number is None or number > 1
        is_typed = number is None and sys.stdin.isatty()
        self._bar = (
            click.progressbar(itertools.count(), length=number, show_pos=True, file=sys.stderr)
            if is_many and not is_typed and sys.stderr.isatty()
            else None
        )

    def add(self, coordinates: str, result: str, words: str, value: Report) -> None:
        """Print a message's result: in `words`, or as a `value` of JSON."""
        self._counts[result] += 1
        if self._as_json:
            print_json(value)
        elif self._bar is None or not sys.stdout.isatty():
            click.echo(f"{coordinates}  {words}" if words else coordinates)
        if self._bar is not None:
            self._bar.update(1)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, traceback)
            counts = ", ".join(f"{count} {printable(name)}" for name, count in self._counts.items())
            click.echo(f"messages: {counts or 'none'}", err=True)


class _Sending:
    """Sends the messages of one call; `status` is the exit status."""

    def __init__(self, messages: _Messages, settings: SendSettings, *, as_json: bool) -> None:
        self.status = 0
        self._messages = messages
        self._settings = settings
        self._results = _Results(messages.number, as_json=as_json)

    async def send(self) -> None:
        """Publish, and print each message's coordinates."""
        with self._results as results:
            async with publisher(self._settings) as kafka:
                async for coordinates in self._published(kafka):
                    results.add(coordinates, "sent", "", {"coordinates": coordinates})

    async def send_and_wait(self, timeout_seconds: float) -> None:
        """Publish, and print each message's outcome."""
        async with (
            watching(self._settings, as_bytes(self._messages.user)) as watch,
            publisher(self._settings) as kafka,
        ):
            sent = [coordinates async for coordinates in self._published(kafka)]
            deadline = asyncio.get_running_loop().time() + timeout_seconds
            with self._results as results:
                for coordinates in sent:
                    try:
                        async with asyncio.timeout_at(deadline):
                            report = await watch.outcome_of(coordinates)
                    except TimeoutError:
                        report = _no_outcome(coordinates, timeout_seconds)
                    result = report["outcome"] or "without an outcome"
                    results.add(coordinates, result, printable(in_words(report)), report)
                    # An outcome of a later version is no reason to say that all is well.
                    status = _STATUS.get(result, 1) if report["outcome"] else _NO_OUTCOME
                    self.status = max(self.status, status)

    async def _published(self, kafka: Publisher) -> AsyncIterator[str]:
        """Publish, and yield each message's coordinates, in order, once Kafka has the message."""
        handed_over: asyncio.Queue[Awaitable[Any] | None] = asyncio.Queue(_MOST_UNACKNOWLEDGED)
        handing = asyncio.create_task(self._hand_over(kafka, handed_over))
        try:
            while (acknowledged := await handed_over.get()) is not None:
                yield coordinates_of(await acknowledged)
            await handing  # raises what has ended it
        finally:
            handing.cancel()

    async def _hand_over(
        self, kafka: Publisher, handed_over: asyncio.Queue[Awaitable[Any] | None]
    ) -> None:
        """Give the messages to Kafka; None stands behind the last."""
        user, headers = self._messages.user, self._messages.headers
        try:
            async for payload in self._messages.payloads():
                await handed_over.put(await kafka.hand_over(user, payload, headers))
        finally:
            await handed_over.put(None)


def _no_outcome(coordinates: str, timeout_seconds: float) -> Report:
    reason = f"no outcome within {timeout_seconds:g} s; does a processor run?"
    return {"coordinates": coordinates, "outcome": None, "reason": reason}
