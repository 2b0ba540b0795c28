"""The lines of `pushgate top`, for a screen of any size, or for a pipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from pushgate.printable import printable
from pushgate.table import Column, counted, cut, duration, table
from pushgate.top.figures import Figures, Gateway, Processor, remarks

_GATEWAY_COLUMNS: Final = (
    Column("gateway"),
    Column("status"),
    Column("conns", is_number=True),
    Column("ws", 6, is_number=True),
    Column("sse", 6, is_number=True),
    Column("poll", 6, is_number=True),
    Column("push/s", 1, is_number=True),
    Column("p99", 2, is_number=True),
    Column("open/s", 3, is_number=True),
    Column("close/s", 3, is_number=True),
    Column("refuse/s", 4, is_number=True),
    Column("cpu", 5, is_number=True),
    Column("rss", 5, is_number=True),
    Column("up", 7, is_number=True),
    Column("version", 8),
)
_PROCESSOR_COLUMNS: Final = (
    Column("processor"),
    Column("status"),
    Column("lag", is_number=True),
    Column("msg/s", 1, is_number=True),
    Column("failed/s", 2, is_number=True),
    Column("waiting", 3, is_number=True),
    Column("in hand", 5, is_number=True),
    Column("oldest", 4, is_number=True),
    Column("look-up p99", 6, is_number=True),
    Column("forward p99", 6, is_number=True),
    Column("cpu", 7, is_number=True),
    Column("rss", 7, is_number=True),
    Column("up", 8, is_number=True),
    Column("version", 9),
)
_UNKNOWN: Final = "-"
_Process = TypeVar("_Process", Gateway, Processor)
_READY: Final = "ready"


def lines(
    figures: Figures, *, title: str, cells: int | None = None, height: int | None = None
) -> list[str]:
    """Return all lines, `cells` wide and `height` high at most; None is without a limit.

    `title` is the first line.
    """
    head = [title, _summary(figures), _outcomes(figures)]
    notes = remarks([*figures.gateways, *figures.processors])
    if figures.processors_without_port:
        notes.append(
            f"{counted(figures.processors_without_port, 'processor')} not shown: set "
            "PUSHGATE_PROCESSOR_ADVERTISE_ADDRESS there"
        )
    gateways = table(_GATEWAY_COLUMNS, _rows(figures.gateways, _gateway_row), cells=cells)
    processors = table(_PROCESSOR_COLUMNS, _rows(figures.processors, _processor_row), cells=cells)
    if not figures.gateways:
        gateways = ["no gateway is live"]
    if not figures.processors:
        processors = ["no processor is found"]
    body = [printable(note) for note in notes]
    if height is not None:
        room = max(0, height - len(head) - 2)
        body = _cropped(body, max(1, room // 4))
        tables = room - len(body) - 1
        processors = _cropped(processors, max(2, tables // 2))
        gateways = _cropped(gateways, max(2, tables - len(processors)))
    all_lines = [*head, "", *gateways, "", *processors, *(["", *body] if body else [])]
    return [cut(line, cells) for line in all_lines][:height]


def _summary(figures: Figures) -> str:
    return "   ".join(
        (
            counted(len(figures.gateways), "gateway"),
            counted(len(figures.processors), "processor"),
            counted(figures.connections, "connection"),
            f"lag {_number(figures.lag_messages)}",
        )
    )


def _outcomes(figures: Figures) -> str:
    if figures.seconds is None:
        return "rates follow with the next reading"
    rates = figures.outcome_rates
    if rates is None:
        return "outcomes unknown"
    told = (f"{printable(name)} {_rate(rate)}/s" for name, rate in rates.items() if rate)
    return "   ".join(told) or "no outcomes"


def _cropped(lines: Sequence[str], most: int) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[: most - 1], f"… {len(lines) - most + 1} more"]


def _rows(processes: Sequence[_Process], row: Callable[[_Process], list[str]]) -> list[list[str]]:
    """Return the rows of processes; those not ready first, since the last rows may be cut off."""
    return [row(process) for process in sorted(processes, key=lambda p: p.status == _READY)]


def _gateway_row(gateway: Gateway) -> list[str]:
    held = gateway.connections
    is_known = gateway.up_seconds is not None
    return [
        gateway.name,
        _status(gateway),
        *(
            f"{number:,.0f}" if is_known else _UNKNOWN
            for number in (
                sum(held.values()),
                *(held.get(name, 0.0) for name in ("websocket", "sse", "poll")),
            )
        ),
        _rate(gateway.pushed_rate),
        _time(gateway.delivery_p99_seconds),
        _rate(gateway.opened_rate),
        _rate(gateway.closed_rate),
        _rate(gateway.refused_rate),
        *_used(gateway),
    ]


def _processor_row(processor: Processor) -> list[str]:
    rates = processor.outcome_rates
    return [
        processor.name,
        processor.status,
        _number(processor.lag_messages),
        _rate(None if rates is None else sum(rates.values())),
        _rate(None if rates is None else rates.get("failed", 0.0)),
        _number(processor.waiting_messages),
        _number(processor.in_hand_messages),
        _time(processor.oldest_seconds),
        _time(processor.lookup_p99_seconds),
        _time(processor.forward_p99_seconds),
        *_used(processor),
    ]


def _used(process: Gateway | Processor) -> list[str]:
    """Return CPU, memory, age and version."""
    share, resident, up = process.cpu_share, process.resident_bytes, process.up_seconds
    return [
        _UNKNOWN if share is None else f"{share:.0%}",
        _UNKNOWN if resident is None else f"{resident / 1024**2:,.0f} MiB",
        _UNKNOWN if up is None else duration(up),
        process.version or _UNKNOWN,
    ]


def _status(gateway: Gateway) -> str:
    left = gateway.drain_seconds
    return gateway.status if left is None else f"{gateway.status}, {duration(left)} left"


def _number(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{number:,.0f}"


def _rate(rate: float | None) -> str:
    """Return a rate; small ones with a decimal, so that a rare event is not 0."""
    if rate is None:
        return _UNKNOWN
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    return f"{seconds * 1_000:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"
