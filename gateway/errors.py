"""The base of every error that this package raises."""


class GatewayError(Exception):
    """Something that a gateway node can't do or does not accept; subclasses say what."""
