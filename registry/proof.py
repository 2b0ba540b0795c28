"""The proof of the internal secret, for one process: a call shows the proof for the secret.

A caller learns the address of a node from Redis, and anybody with access to Redis can write a false
address. So a call does not carry the secret, but an HMAC-SHA256 (RFC 2104) keyed with the secret,
over the name, the epoch and the address for which the call is meant:

    Authorization: Pushgate v1.<64 hexadecimal digits>

A node accepts the proof for its own name, epoch and address alone. A proof that was sent to a false
address opens no node, and says nothing about a secret of 32 bytes. A proof has no date: until the
node's end, the holder of the node's proof can call the node. The holder is the node itself, or a
listener on the network, against whom TLS helps.
"""

from __future__ import annotations

import hmac
from typing import Final, Literal

from registry.directory import Node

#: The scheme of the field Authorization (RFC 9110 §11.4).
SCHEME: Final = "Pushgate"
#: The version and the form of a proof.
_VERSION: Final = "v1"
#: The kinds of processes with a port for calls.
Kind = Literal["gateway", "processor"]
#: The purpose of the proof, ahead of the node's parts under the HMAC: with another label, the same
#: secret may serve another purpose. Processors' ports have no TLS: a proof shown there opens no
#: gateway, also where a false entry in Redis has a gateway's name, epoch and address.
_LABELS: Final[dict[Kind, str]] = {
    "gateway": "pushgate call to a gateway, v1",
    "processor": "pushgate call to a processor, v1",
}


def proof(secret: str, node: Node, *, kind: Kind = "gateway") -> str:
    """Return the proof of `secret` for `node`: printable ASCII, 67 characters.

    Parts are separated by NUL, which no part of a node can have: no two nodes have equal bytes.
    """
    message = "\0".join((_LABELS[kind], node.name, node.epoch, node.address)).encode()
    return f"{_VERSION}.{hmac.digest(secret.encode(), message, 'sha256').hex()}"
