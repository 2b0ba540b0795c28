"""Log lines of all packages, the project's own and the libraries', in one form."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(*, as_json: bool, level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to standard error.

    A record is a line: JSON for machines, or columns for people. `level` is the level of the
    project's own packages; libraries log warnings and errors.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for package in ("gateway", "processor", "registry", "pushgate"):
        logging.getLogger(package).setLevel(level)
    # uvicorn's warnings are of clients that break off; a metric counts them already.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # aiokafka repeats every second an error that the processor has logged once, by name.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
