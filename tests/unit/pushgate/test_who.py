"""What `pushgate who` prints of the answers of registry and nodes."""

from __future__ import annotations

import pytest

from pushgate.commands.who import _print
from pushgate.users import Connections, Listing


def test_no_name_of_a_node_takes_the_terminal_over(capsys: pytest.CaptureFixture[str]) -> None:
    _print("alice", Connections([], [Listing("gw\x1b[2J", "e1", 1, [])], []))
    assert "connected and not registered: gw\ufffd[2J;" in capsys.readouterr().out
