"""What opens the port of one process: the internal secret, or a proof of it for this process."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

from registry.directory import Node
from registry.proof import SCHEME, Kind, proof

_PROOF_SCHEME: Final = SCHEME.lower().encode("ascii")


class Credentials:
    """The values of a field Authorization that one process accepts.

    People and tools send the secret. Processes that learnt the address from the registry send a
    proof, which is good for no other process (proof.py).
    """

    def __init__(
        self, secrets: Sequence[str], node: Node | None, *, kind: Kind = "gateway"
    ) -> None:
        """Any of `secrets` is accepted (for rotation), and so is a proof of it for `node`.

        `kind` is the process's.
        """
        nodes = [] if node is None else [node]
        proofs = [proof(secret, each, kind=kind).encode() for secret in secrets for each in nodes]
        self._accepted = {
            b"bearer": [secret.encode() for secret in secrets],
            _PROOF_SCHEME: proofs,
        }

    def accept(self, credential: bytes) -> bool:
        """Whether the value of a field Authorization is among the accepted ones."""
        scheme, _, given = credential.partition(b" ")  # the scheme has no case (RFC 9110 §11.1)
        # Every one is compared, also after a match: the time taken tells nothing of any secret.
        accepted = self._accepted.get(scheme.lower(), ())
        matches = [hmac.compare_digest(given, one) for one in accepted]
        return any(matches)
