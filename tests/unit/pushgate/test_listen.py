"""`pushgate listen` comes back by itself, with how far it has come."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from pushgate.cli import cli
from pushgate.client import Message
from pushgate.commands import listen as listen_module
from pushgate.commands.listen import _Listener
from pushgate.printable import printable_payload
from pushgate.settings import ListenSettings

CURSOR: Final = b"event: pushgate.cursor\ndata: 25000\nid: %b\n\n"
BARE: Final = b"event: pushgate.cursor\ndata: 25000\n\n"
NO_TOKEN: Final = b"no such token\n"


@contextmanager
def answering(*streams: bytes, refusal: bytes = NO_TOKEN) -> Iterator[tuple[str, list[str]]]:
    """Answer the first requests with event streams that end, the next with 401.

    Give the server's address, and what is asked for.
    """
    left, targets = list(streams), list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            targets.append(self.path)
            if not left:
                self.send_response(401)
                self.end_headers()
                self.wfile.write(refusal)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(left.pop(0))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", targets
        server.shutdown()
        thread.join()


def listened(
    monkeypatch: pytest.MonkeyPatch,
    *streams: bytes,
    flags: Sequence[str] = (),
    refusal: bytes = NO_TOKEN,
) -> tuple[Result, list[str]]:
    """Run it until it is refused; give what it said, and what it asked for."""
    monkeypatch.setattr(listen_module, "_RECONNECT_SECONDS", 0.0)
    with answering(*streams, refusal=refusal) as (url, targets):
        given = ["--transport", "sse", "--url", url, "--jwt-secret", "x" * 32, *flags]
        return CliRunner().invoke(cli, ["listen", "alice", *given]), targets


def test_after_the_end_of_a_connection_it_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    result, targets = listened(
        monkeypatch,
        CURSOR % b"a1" + b"data: one\nid: a1,push-0-5 m1\n\n",
        CURSOR % b"a1,push-0-5" + b"data: two\nid: a2,push-0-6 m2\n\n",
    )
    assert result.exit_code == 1, result.output  # 401, in the end
    assert result.stdout == "one\ntwo\n"
    assert targets == ["/sse", "/sse?cursor=a1%2Cpush-0-5", "/sse?cursor=a2%2Cpush-0-6"]
    assert result.stderr.count("the connection ended; connecting again to resume\n") == 2
    assert "missed" not in result.stderr
    assert result.stderr.count("connected as alice by sse\n") == 2
    assert "refused with 401: no such token" in result.stderr


def test_it_says_where_messages_were_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = b"event: pushgate.gap\ndata: {}\n\n"
    result, targets = listened(monkeypatch, CURSOR % b"a1", CURSOR % b"a2" + gap, BARE + BARE)
    assert targets == ["/sse", "/sse?cursor=a1", "/sse?cursor=a2", "/sse"]
    lines = [line for line in result.stderr.splitlines() if "connected as" not in line]
    said = [line.partition(": ")[2] for line in lines if "http://" in line]
    assert said[:5] == [
        "the connection ended; connecting again to resume",
        "messages were missed here",
        "the connection ended; connecting again to resume",
        "messages were missed here",
        "the connection ended; connecting again",
    ]


HI = b"event: greeting\ndata: hi\nid: a1,push-0-5 m1\n\n"
BYTES = (
    b"event: pushgate.binary\n"
    b'data: {"id": "m2", "type": null, "data": "/w==", "encoding": "base64"}\n'
)


def test_json_has_the_form_of_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = CURSOR % b"a1" + HI + BYTES + b"id: a1,push-0-6 m2\n\n"
    result, _ = listened(monkeypatch, stream, flags=["--json"])
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"id": "m1", "type": "greeting", "data": "hi"},
        {"id": "m2", "type": None, "data": "/w==", "encoding": "base64"},
    ]


def test_it_ends_after_as_many_messages_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    result, targets = listened(monkeypatch, CURSOR % b"a1" + HI + HI + HI, flags=["--count", "2"])
    assert (result.exit_code, result.stdout, len(targets)) == (0, "hi\nhi\n", 1)


def test_a_token_that_the_gateway_would_refuse_is_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, targets = listened(monkeypatch, flags=["--device", ""])
    assert (result.exit_code, targets) == (1, [])
    assert "device is no device name" in result.stderr


def test_no_refusal_takes_the_terminal_over(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = listened(monkeypatch, refusal=b"no \x1b[2J token")
    assert "refused with 401: no \ufffd[2J token" in result.stderr
    assert "\x1b" not in result.stderr


def test_no_id_and_no_type_takes_the_terminal_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    settings = ListenSettings(jwt_secret=SecretStr("x" * 32))
    listener = _Listener("alice", "sse", None, settings, as_json=False)
    listener.show(Message("m\x1b[2J", "greet\n", b"hi\x07"))
    listener._say("another server\x1b[2J")
    told = capsys.readouterr()
    assert told.out.partition("  ")[2] == "m\ufffd[2J  greet\ufffd  hi\\x07\n"
    assert told.err.endswith(": another server\ufffd[2J\n")


def test_a_payload_takes_no_terminal_over() -> None:
    readable = printable_payload("a\tb\x1b[2J\n\u202eé".encode() + b"\xff")
    assert readable == "a\tb\\x1b[2J\\n\\u202eé\\xff"
