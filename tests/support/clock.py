"""Time that a test moves."""


class Clock:
    """A monotonic clock in seconds, at `now` until the test sets it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Give the time."""
        return self.now
