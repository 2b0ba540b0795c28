"""The base class of every error that this package raises."""


class ProcessorError(Exception):
    """An error of a processor; every subclass says what the processor can't do."""
