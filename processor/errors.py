"""The base of every error that this package raises."""


class ProcessorError(Exception):
    """Something that a processor can't do; subclasses say what."""
