"""Log lines of all packages, the project's own and the libraries', in one form."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal

import structlog

from pushgate.sampling import Budget, Event, SampledHandler

LogLevel = Literal["debug", "info", "warning", "error"]

#: The loggers of the project's own packages; all others are libraries'.
_PACKAGES: Final = frozenset({"gateway", "processor", "registry", "pushgate"})
#: What is written of one event under a storm. Libraries repeat some errors at every try.
_DETAILS: Final = Budget(1_000, 10.0)
_TROUBLE: Final = Budget(20, 10.0)
_OF_LIBRARIES: Final = Budget(5, 60.0)

log = structlog.get_logger("pushgate")


def configure(*, as_json: bool, level: LogLevel = "info") -> None:
    """Send structlog's and the standard library's records to standard error.

    A record is a line: JSON for machines, or columns for people. `level` is the least level of a
    line; of libraries no line below a warning is written. Of an event that comes very often a
    sample is written (sampling.py).
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Below its level a method of this class does nothing: lines of single connections cost a
        # call and their arguments where they are not asked for.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    # Plain: structlog's own traceback shows local variables, which may be secrets and payloads.
    for_people = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    renderers: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [for_people]
    )
    handler = SampledHandler(sys.stderr, budget_of=_budget, report=_say_left_out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    own = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(handlers=[handler], level=max(own, logging.WARNING), force=True)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(own)
    # uvicorn's warnings are of clients that break off; a metric counts them already.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def _budget(record: logging.LogRecord) -> Budget:
    if record.name.partition(".")[0] not in _PACKAGES:
        return _OF_LIBRARIES
    return _DETAILS if record.levelno < logging.WARNING else _TROUBLE


def _say_left_out(event: Event, lines: int) -> None:
    log.log(event.level, "lines were left out", of=event.text, by=event.logger, left_out=lines)
