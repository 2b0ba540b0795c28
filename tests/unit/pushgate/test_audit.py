"""The comparison of registry and nodes, where something comes between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner

from pushgate.audit import Audit, AuditError, _places_of
from pushgate.cli import cli
from pushgate.ports import Ports
from registry.directory import Node

pytestmark = pytest.mark.anyio

NODE = Node("gw-1", "e1", "127.0.0.1:8081")


def test_ctrl_c_has_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object, **__: object) -> Audit:
        raise KeyboardInterrupt

    monkeypatch.setattr("pushgate.commands.audit.run_audit", interrupted)
    words = ["audit", "--internal-secret", "s" * 32]
    assert CliRunner().invoke(cli, words).exit_code == 130


async def test_no_name_of_another_node_takes_the_terminal_over() -> None:
    listing = {"node": "gw\x1b[2J" + "x" * 100, "epoch": "e1", "users": {}}

    async def ask(method: str, node: Node, path: str, shape: type[Any]) -> object:
        return msgspec.convert(listing, shape)

    with pytest.raises(AuditError) as raised:
        await _places_of(cast("Ports", SimpleNamespace(ask=ask)), NODE)
    name = "gw\ufffd[2J" + "x" * 58 + "…"
    assert str(raised.value) == f"at 127.0.0.1:8081 is node {name}, not gw-1"
