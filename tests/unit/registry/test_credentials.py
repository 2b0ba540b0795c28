"""What opens a port: any of the secrets, or a proof of one for this node."""

from __future__ import annotations

from typing import get_args

import pytest

from registry.credentials import Credentials
from registry.directory import Node
from registry.proof import Kind, proof

NODE = Node("gw", "e1", "127.0.0.1:8081")
LATER = Node("gw", "e2", "127.0.0.1:8081")


@pytest.mark.parametrize(
    ("credential", "accepted"),
    [
        ("Bearer one", True),
        ("bearer other", True),
        ("Bearer wrong", False),
        ("Bearer ", False),
        ("Basic one", False),
        (f"Pushgate {proof('one', NODE)}", True),
        (f"PUSHGATE {proof('other', NODE)}", True),
        (f"Pushgate {proof('one', LATER)}", False),
        (f"Bearer {proof('one', NODE)}", False),
    ],
)
def test_credentials(credential: str, accepted: bool) -> None:
    assert Credentials(["one", "other"], NODE).accept(credential.encode()) is accepted


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_proof_for_a_gateway_opens_no_processor_and_the_other_way_round(kind: Kind) -> None:
    opened = [
        each
        for each in get_args(Kind)
        if Credentials(["one"], NODE, kind=kind).accept(
            f"Pushgate {proof('one', NODE, kind=each)}".encode()
        )
    ]
    assert opened == [kind]


def test_without_a_node_no_proof_counts() -> None:
    credentials = Credentials(["one"], None)
    assert credentials.accept(b"Bearer one")
    assert not credentials.accept(f"Pushgate {proof('one', NODE)}".encode())
