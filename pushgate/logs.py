"""Log lines of all parts, ours and the libraries', in one form."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(*, as_json: bool, level: str = "INFO") -> None:
    """Send structlog's and the standard library's records to standard error.

    People read columns, machines read JSON, a line a record.
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
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [for_people]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for ours in ("gateway", "processor", "registry", "pushgate"):
        logging.getLogger(ours).setLevel(level)
    # Its warnings are of clients that break off; each is counted already.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # It repeats each second what the processor has said once, by name.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
