"""What `pushgate who` prints of the answers of registry and nodes."""

from __future__ import annotations

import pytest

from pushgate.commands.who import _print
from pushgate.users import Connections


def test_no_name_of_a_node_takes_the_terminal_over(capsys: pytest.CaptureFixture[str]) -> None:
    listing = {"node": "gw\x1b[2J", "total": 1, "connections": []}
    _print("alice", Connections([], [listing], []))
    assert "connected and not registered: gw\ufffd[2J;" in capsys.readouterr().out
