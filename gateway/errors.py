"""The base of every error that this package raises, and the meaning of a socket's error."""

from __future__ import annotations


class GatewayError(Exception):
    """A gateway node can't do something, or does not accept an input; see the subclasses."""


def has_vanished(error: Exception | None) -> bool:
    """Whether a socket's end, by the error of `connection_lost`, was the silence of the peer.

    The kernel gives up a peer that acknowledges neither bytes nor probes, with ETIMEDOUT or with
    the last error from the network on the way, such as EHOSTUNREACH (tcp(7), TCP_USER_TIMEOUT). A
    peer that is there ends with a FIN (None) or a reset (ConnectionError).
    """
    return isinstance(error, OSError) and not isinstance(error, ConnectionError)
