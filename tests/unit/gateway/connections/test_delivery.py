"""A message on its way out: text where it is text, base64 where it is not, encoded once a form."""

import json
from base64 import b64decode

import pytest

from gateway.connections.delivery import Delivery, cursor_form, json_form


def form_of(payload: bytes, event_type: str | None = None) -> dict[str, object]:
    form: dict[str, object] = json.loads(
        json_form(Delivery(payload, message_id="m-1", event_type=event_type))
    )
    return form


@pytest.mark.parametrize(
    "text", ["", "plain", "\x00", "\r\n", "\u2028\u2029", "\ufeffbom", "😀", '"\\', "\x7f\x85"]
)
def test_text_is_carried_as_it_is(text: str) -> None:
    assert Delivery(text.encode(), message_id="m-1").text == text
    assert form_of(text.encode()) == {"id": "m-1", "type": None, "data": text}


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"\x80abc", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", "é".encode()[:1]],
)
def test_what_is_no_utf_8_is_base64_and_says_so(payload: bytes) -> None:
    form = form_of(payload)
    assert form["encoding"] == "base64"
    assert b64decode(str(form["data"])) == payload
    assert Delivery(payload, message_id="m-1").text is None


def test_the_type_is_carried() -> None:
    assert form_of(b"x", "chat")["type"] == "chat"
    assert form_of(b"\xff", "chat")["type"] == "chat"


def test_a_form_is_encoded_once_however_many_get_it() -> None:
    calls: list[Delivery] = []

    def form(delivery: Delivery) -> bytes:
        calls.append(delivery)
        return b"encoded"

    delivery = Delivery(b"x", message_id="m-1")
    assert [delivery.encoded(form) for _ in range(3)] == [b"encoded"] * 3
    assert calls == [delivery]


def test_forms_do_not_mix() -> None:
    delivery = Delivery(b"x", message_id="m-1")
    assert delivery.encoded(json_form) != delivery.encoded(lambda one: one.payload)
    assert delivery.encoded(json_form) == json_form(delivery)


# Cursors


def test_a_message_from_the_log_has_the_nodes_time_and_its_place_as_cursor() -> None:
    delivery = Delivery(b"x", message_id="m-1", position="push-3-17", as_of="k")
    assert delivery.cursor == "k,push-3-17"
    assert delivery.place == ("push", 3, 17)
    form = json.loads(cursor_form(delivery))
    assert form == {"id": "m-1", "cursor": "k,push-3-17", "type": None, "data": "x"}


def test_a_message_that_is_in_no_log_has_the_nodes_time_alone() -> None:
    delivery = Delivery(b"\xff", message_id="m-1", as_of="k")
    assert (delivery.cursor, delivery.place) == ("k", None)
    form = json.loads(cursor_form(delivery))
    assert (form["cursor"], form["encoding"]) == ("k", "base64")


def test_where_clients_do_not_resume_there_is_no_cursor() -> None:
    delivery = Delivery(b"x", message_id="m-1", position="push-3-17")
    assert delivery.cursor is None
    assert cursor_form(delivery) == json_form(delivery)


def test_a_copy_with_another_cursor_differs_in_nothing_else() -> None:
    delivery = Delivery(b"\xff", message_id="m-1", event_type="t", position="push-3-17", as_of="k")
    before = cursor_form(delivery)
    copy = delivery.with_cursor("z,push-3-17")
    assert json.loads(cursor_form(copy)) == {**json.loads(before), "cursor": "z,push-3-17"}
    assert (copy.place, copy.payload, copy.text) == (delivery.place, b"\xff", None)
    assert cursor_form(delivery) == before
