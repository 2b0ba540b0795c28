"""PUSHGATE_… variables of the environment that are no settings: their names are misspelt."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Final

from pushgate.options import PREFIX
from pushgate.settings import AuditSettings, DevSettings, ListenSettings, SendSettings
from pushgate.workers import WorkerSettings

#: Variables that no command reads: the image's health check does (deploy/docker).
_FOREIGN: Final = frozenset({f"{PREFIX}HEALTH_URL"})


def known_variables() -> frozenset[str]:
    """Return the names of all variables that any command reads, and of the image's own."""
    every = (DevSettings, SendSettings, ListenSettings, AuditSettings, WorkerSettings)
    names = {name for settings in every for name in settings.model_fields}
    return _FOREIGN | {f"{PREFIX}{name.upper()}" for name in names}


def remarks(environment: Mapping[str, str]) -> list[str]:
    """Return what an operator should know of `environment`: at most one sentence.

    Values are not shown: the value of a misspelt name may be a secret.
    """
    unknown = _unknown(environment, known_variables())
    return [f"no command knows these variables: {', '.join(unknown)}"] if unknown else []


def _unknown(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    """Return the names that no command knows, each with the nearest name that a command knows."""
    names = sorted(name for name in environment if name.upper().startswith(PREFIX))
    return [
        # A cutoff of 0: the nearest name, however far.
        f"{name} (nearest: {get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]})"
        for name in names
        if name.upper() not in known
    ]
