"""Timings that no deployment may have: a test shortens one, and leaves the others."""

from dataclasses import dataclass

from registry.directory import Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyTimings(Timings):
    """Timings that may contradict each other."""

    def __post_init__(self) -> None:
        """Check nothing."""
