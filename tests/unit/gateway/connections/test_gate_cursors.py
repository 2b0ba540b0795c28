"""The cursors of messages that pass a gate: the last position is the message's own."""

from __future__ import annotations

import json

from gateway.connections.cursor import Cursor
from gateway.connections.delivery import Delivery, cursor_form
from gateway.connections.gate import Gate


def cursor_of(gate: Gate, position: str | None) -> str:
    delivery = Delivery(b"", message_id="m", position=position, as_of="zz")
    cursor: str = json.loads(gate.encoded(delivery, cursor_form))["cursor"]
    return cursor


def test_the_last_position_of_a_cursor_is_the_messages_own() -> None:
    gate = Gate(Cursor(36, {("push", 0): 4, ("push", 1): 7}), most_bytes=1_000)
    assert cursor_of(gate, "push-0-5") == "10,push-1-7,push-0-5"
    assert cursor_of(gate, "high-0-1") == "10,push-0-4,push-1-7,high-0-1"


def test_a_message_that_is_in_no_log_has_no_position() -> None:
    gate = Gate(Cursor(36, {("push", 0): 4}), most_bytes=1_000)
    assert cursor_of(gate, None) == "10"
    assert gate.cursor(0) == "10,push-0-4"
