"""The limit of open files (RLIMIT_NOFILE), which bounds how many connections a process holds."""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger("pushgate")


def raise_limit() -> None:
    """Raise the soft limit to the hard limit, which only an administrator can raise.

    Soft limits are low (1,024 in most shells and services) for programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # systems with a lower limit of their own (macOS)
        log.warning("the limit of open files stays", soft=soft, hard=hard, error=str(error))
