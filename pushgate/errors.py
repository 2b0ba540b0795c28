"""The base of every error that this package raises."""


class PushgateError(Exception):
    """A command can't do what the user asked for; the text says why, and what to do about it."""
