"""Heads that are written past ASGI: what a parser of HTTP makes of them."""

from __future__ import annotations

import pytest
from websockets.http11 import Response
from websockets.streams import StreamReader

from gateway.http import responses


def parsed(data: bytes) -> Response:
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parsing = Response.parse(reader.read_line, reader.read_exact, reader.read_to_eof)
    try:
        while True:
            next(parsing)
    except StopIteration as stop:
        response: Response = stop.value
        return response


def test_a_started_head_takes_more_fields_until_it_ends() -> None:
    head = responses.start_head(200, {"content-type": "text/event-stream"})
    more = responses.field_lines({"vary": "origin", "x-a": "b"})
    response = parsed(head + more + responses.END_HEAD)
    assert (response.status_code, response.reason_phrase) == (200, "OK")
    assert dict(response.headers.raw_items()) == {
        "content-type": "text/event-stream",
        "vary": "origin",
        "x-a": "b",
    }


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 100_000])
def test_a_body_comes_with_its_length(body: bytes) -> None:
    response = parsed(responses.with_body(responses.start_head(404, {}), body))
    assert response.status_code == 404
    assert response.headers["content-length"] == str(len(body))
    assert response.body == body


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("last", [False, True])
def test_an_answer_says_whether_its_connection_closes(status: int, last: bool) -> None:
    response = parsed(responses.answer(status, b"application/json", b"[1]", last=last))
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers.get("connection") == ("close" if last else None)
    assert response.body == b"[1]"


def test_a_refusal_is_one_line_of_text_and_the_end_of_its_connection() -> None:
    response = parsed(responses.refusal(431, "the head is too large"))
    assert (response.status_code, response.reason_phrase) == (
        431,
        "Request Header Fields Too Large",
    )
    assert response.headers["connection"] == "close"
    assert response.body == b"the head is too large\n"
