"""`pushgate tail`."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import click

from processor.reading.kafka import KafkaError, Record
from pushgate.commands.running import json_option, load_settings, print_json
from pushgate.options import settings_options
from pushgate.outcomes import in_words, outcomes_topic, read_report
from pushgate.printable import payload_json, printable, printable_payload
from pushgate.publish import as_bytes
from pushgate.seconds import Seconds
from pushgate.settings import DEV_FILE, TailSettings
from pushgate.standard_output import run_while_read
from pushgate.table import cut, terminal_cells
from pushgate.topics import UnreadableTopic, reading

#: How much of a rejected record's value is shown.
_SHOWN_BYTES: Final = 60
#: The fewest cells that a user is cut to on a terminal: a quarter of the line, or these.
_LEAST_USER_CELLS: Final = 8
#: The most of --since, in seconds: 31 years. Kafka takes no time before 1970.
_MOST_SINCE: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Line:
    """A record: its user and `parts`, the most important first, for people; `value` for scripts."""

    at_ms: int
    user: str
    parts: list[str]
    value: dict[str, Any]


@click.command(
    epilog="Exit status: 0 after --count lines, or when the pipe is closed that is written to; 1 "
    "an error; 2 wrong usage; 130 Ctrl-C."
)
@click.argument("topic", type=click.Choice(["outcomes", "dead"]))
@click.option("--user", help="The records of this user alone.")
@click.option("--since", type=Seconds(0, _MOST_SINCE), metavar="SECONDS",
              help="Begin with the records of the last so many seconds.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), help="End after so many records.")
@json_option
@settings_options(TailSettings)
def tail(
    topic: str,
    user: str | None,
    since: float | None,
    count: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print what became of messages (outcomes), or the rejected records (dead), as they come."""
    settings = load_settings(TailSettings, flags, files=(DEV_FILE,))
    since_ms = None if since is None else int((time.time() - since) * 1_000)
    key = None if user is None else as_bytes(user)

    async def follow() -> None:
        remaining = count
        # Closed here, and not as garbage after the loop's end: the consumer leaves its brokers.
        async with aclosing(_lines(settings, topic, key, since_ms)) as lines:
            async for line in lines:
                _print(line, as_json=as_json)
                if remaining is not None:
                    remaining -= 1
                    if not remaining:
                        return

    try:
        run_while_read(follow())
    except KafkaError as error:
        raise click.ClickException(f"Kafka at {settings.kafka_bootstrap}: {error}") from error
    except UnreadableTopic as error:
        raise click.ClickException(str(error)) from error


async def _lines(
    settings: TailSettings, topic: str, key: bytes | None, since_ms: int | None
) -> AsyncGenerator[_Line]:
    """Yield the records of a topic with this key, or all, that are of the kind expected there."""
    read: Callable[[Record], _Line | None]
    if topic == "outcomes":
        name, setting, read = outcomes_topic(settings), "PUSHGATE_OUTCOMES_TOPIC", _outcome
    else:
        name, setting, read = settings.dead_letter_topic, "PUSHGATE_DEAD_LETTER_TOPIC", _letter
    async with reading(settings, name, setting=setting, since_ms=since_ms) as consumer:
        async for record in consumer:
            # Partitions are in the order of their offsets, and nearly in that of their times.
            is_older = since_ms is not None and record.timestamp < since_ms
            line = None if is_older or key not in {None, record.key} else read(record)
            if line is not None:
                yield line


def _outcome(record: Record) -> _Line | None:
    report = read_report(record.value)
    if report is None:
        return None
    words = in_words(report)
    if report.get("replayed"):
        words += ", replayed"
    place = "-".join(str(report[name]) for name in ("topic", "partition", "offset"))
    took, message_id = report.get("ms"), report.get("id")
    parts = [
        words,
        "-" if took is None else f"{took} ms",
        ", ".join(report.get("nodes") or ()) or "-",
        str(message_id),
        *([] if message_id == place else [place]),
    ]
    at_ms = report.get("settled_ms") or record.timestamp
    return _Line(at_ms, _key_text(record.key), parts, {"user": _user_json(record.key), **report})


def _letter(record: Record) -> _Line | None:
    marks = {name: value or b"" for name, value in record.headers}
    text = {
        name: marks.get(f"pushgate-{name}", b"").decode(errors="replace")
        for name in ("topic", "partition", "offset", "reason", "detail", "cut-from")
    }
    if not text["reason"]:
        return None  # no dead letter of ours
    place = "-".join((text["topic"], text["partition"], text["offset"]))
    value = record.value or b""
    detail = f"{text['reason']}: {text['detail']}".rstrip(": ")
    preview = printable_payload(value[:_SHOWN_BYTES]).replace("\t", r"\t")
    preview += "…" if len(value) > _SHOWN_BYTES else ""
    size = text["cut-from"] or str(len(value))
    parts = [detail, place, f"{size} bytes", preview]
    return _Line(record.timestamp, _key_text(record.key), parts, _letter_json(record, text))


def _letter_json(record: Record, text: dict[str, str]) -> dict[str, Any]:
    return {
        "user": _user_json(record.key),
        "reason": text["reason"],
        "detail": text["detail"],
        "coordinates": "-".join((text["topic"], text["partition"], text["offset"])),
        "rejected_ms": record.timestamp,
        "cut_from": int(text["cut-from"]) if text["cut-from"].isdigit() else None,
        "headers": {
            name: (value or b"").decode(errors="backslashreplace")
            for name, value in record.headers
            if not name.startswith("pushgate-")
        },
        **payload_json(record.value or b""),
    }


def _key_text(key: bytes | None) -> str:
    return "-" if key is None else key.decode(errors="replace")


def _user_json(key: bytes | None) -> str | None:
    """Return a record's user; bytes that are no UTF-8 stand as \\xNN, null is None."""
    return None if key is None else key.decode(errors="backslashreplace")


def _print(line: _Line, *, as_json: bool) -> None:
    if as_json:
        print_json(line.value)
    else:
        click.echo(_in_cells(line, terminal_cells()))
    sys.stdout.flush()


def _in_cells(line: _Line, cells: int | None) -> str:
    """Return a line for people, `cells` wide at most; None is without a limit."""
    user = cut(printable(line.user), cells and max(_LEAST_USER_CELLS, cells // 4))
    return cut(f"{_clock(line.at_ms)}  {user}  {printable('  '.join(line.parts))}", cells)


def _clock(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1_000).astimezone().strftime("%H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a writer's own idea of time
        return "-"
