"""The base of every error that this package raises."""


class GatewayError(Exception):
    """A gateway node can't do something, or does not accept an input; see the subclasses."""
