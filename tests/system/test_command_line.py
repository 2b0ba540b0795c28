"""The commands beside a running `pushgate dev`: what they print, and how they end."""

import asyncio
import http.client
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
from aiokafka import AIOKafkaProducer

from pushgate.embedded import LOOPBACK, tied_to_parent
from tests.support.processes import ProcessFailed, wait_until
from tests.system.dev_process import Dev


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """Give a `dev` that admits one connection of a user."""
    running = Dev(tmp_path_factory.mktemp("dev"), MAX_CONNECTIONS_PER_USER="1")
    try:
        running.until_up()
        yield running
    finally:
        running.end()


class Listening:
    """A `pushgate listen` that is connected."""

    def __init__(self, dev: Dev, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said: list[str] = []
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(process.stderr,))
        self._reader.start()
        wait_until(lambda: "connected as" in "".join(self.said), "it says that it is connected")

    def _read(self, stderr: IO[bytes]) -> None:
        for line in stderr:
            self.said.append(line.decode())

    def line(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def listening(dev: Dev, *words: str) -> Iterator[Listening]:
    command = tied_to_parent([sys.executable, "-m", "pushgate", "listen", *words])
    with subprocess.Popen(
        command, env=dev.inherited, cwd=dev.directory, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield Listening(dev, process)
        finally:
            process.kill()


def publish(dev: Dev, *records: tuple[bytes, bytes, dict[str, bytes]]) -> None:
    """Publish records that `send` would refuse."""

    async def publish_all() -> None:
        async with AIOKafkaProducer(bootstrap_servers=dev.bootstrap) as producer:
            for key, value, headers in records:
                await producer.send_and_wait("push", value, key=key, headers=list(headers.items()))

    asyncio.run(publish_all())


# send


@pytest.mark.parametrize("transport", ["ws", "sse", "poll"])
def test_wait_prints_the_outcome_and_leaves_with_it(dev: Dev, transport: str) -> None:
    user = f"waiting-{transport}"
    offline = dev.run("send", user, "x", "--wait")
    assert (offline.returncode, offline.stdout.split()[1:]) == (3, [b"offline"])
    with listening(dev, user, "--transport", transport) as client:
        delivered = dev.run("send", user, "hello", "--wait")
        assert delivered.returncode == 0, delivered.stderr
        assert re.fullmatch(rb"push-\d-\d+  delivered to 1 connection\n", delivered.stdout)
        assert client.line() == b"hello\n"
        report = json.loads(dev.run("send", user, "again", "--wait", "--json").stdout)
        assert (report["outcome"], report["connections"]) == ("delivered", 1)


def test_the_worst_outcome_of_several_counts(dev: Dev) -> None:
    with listening(dev, "several"):
        words = ("send", "several", "-", "--wait", "--device")
        assert dev.run("send", "several", "-", "--wait", line=b"1\n2\n").returncode == 0
        assert dev.run(*words, "phone", line=b"1\n2\n").returncode == 3


def test_an_outcome_that_does_not_come_has_a_status_of_its_own(dev: Dev) -> None:
    words = ("send", "nobody", "x", "--wait", "--timeout", "0.5")
    ended = dev.run(*words, "--outcomes-topic", "nobodys.topic")
    assert (ended.returncode, b"no outcome within 0.5 s" in ended.stdout) == (8, True)


def test_headers_files_repeats_and_lines_arrive(dev: Dev, tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"of\na file\xff")
    with listening(dev, "fields", "--json", "--count", "6") as client:
        dev.command("send", "fields", "--file", str(file), "--type", "greeting", "--id", "m-1")
        dev.command("send", "fields", "twice", "--repeat", "2", "--ttl", "60", "--urgency", "low")
        assert dev.run("send", "fields", "-", line=b"1\n\nlast").returncode == 0
        first, *others = (json.loads(client.line()) for _ in range(6))
        assert client.process.wait(10) == 0
    assert first == {
        "id": "m-1", "type": "greeting", "data": "b2YKYSBmaWxl/w==", "encoding": "base64",
    }  # fmt: skip
    assert [message["data"] for message in others] == ["twice", "twice", "1", "", "last"]


def test_the_line_that_breaks_a_rule_is_named_and_those_before_are_sent(dev: Dev) -> None:
    ended = dev.run("send", "u", "-", line=b"good\n" + b"x" * 70_000 + b"\nnever\n")
    assert ended.returncode == 6
    assert b"line 2: not sent, since a rule is broken: too-large" in ended.stderr
    assert len(ended.stdout.splitlines()) == 1
    ended = dev.run("send", "u", "-", "--id", "m", line=b"1\n2\n")
    assert (ended.returncode, b"line 2: --id names one message" in ended.stderr) == (2, True)


def test_many_messages_show_a_bar_on_a_terminal_alone(dev: Dev) -> None:
    shown = on_terminal(dev, "send", "nobody", "x", "--repeat", "300")
    assert "300/300" in shown
    assert "messages: 300 sent" in shown
    assert "push-" not in shown
    piped = dev.run("send", "nobody", "x", "--repeat", "300")
    assert (len(piped.stdout.splitlines()), piped.stderr) == (300, b"")


def on_terminal(dev: Dev, *words: str) -> str:
    """Run a command with a terminal as its output; return all that it shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pushgate", *words], env=dev.inherited, cwd=dev.directory,
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65_536):
                shown += chunk
        except OSError:  # Linux: nobody has the terminal open any more
            pass
        os.close(ours)
        assert process.wait(20) == 0, shown
    return shown.decode()


# top, who, tail


def test_tools_for_operators_find_dev_by_its_file(dev: Dev) -> None:
    assert dev.run("send", "operated", "x", "--wait").returncode == 3  # offline
    (picture,) = lines(dev, "top", "--every", "0.2", "--count", "1", "--json")
    processes = [*picture["gateways"], *picture["processors"]]
    assert [(p["status"], p["remarks"]) for p in processes] == [("ready", [])] * 2
    assert dev.run("who", "operated").returncode == 3
    words = ("--user", "operated", "--since", "600", "--count", "1", "--json")
    assert [report["outcome"] for report in lines(dev, "tail", "outcomes", *words)] == ["offline"]


def lines(dev: Dev, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in dev.command(*words).splitlines()]


def test_tail_ends_when_its_pipe_is_closed(dev: Dev) -> None:
    words = ("tail", "dead", "--since", "600")
    publish(dev, (b"piped", b"x", {"push-ttl": b"soon"}))
    with subprocess.Popen(
        tied_to_parent([sys.executable, "-m", "pushgate", *words]),
        env=dev.inherited, cwd=dev.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as tail:  # fmt: skip
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert b"  piped  push-ttl" in tail.stdout.readline()
        tail.stdout.close()  # as `head -1` does; no further record comes
        assert (tail.wait(10), tail.stderr.read()) == (0, b"")


# listen


@pytest.mark.parametrize("transport", ["ws", "sse", "poll"])
def test_listen_ends_when_its_pipe_is_closed(dev: Dev, transport: str) -> None:
    user = f"piped-{transport}"
    with listening(dev, user, "--transport", transport) as client:
        dev.command("send", user, "one")
        assert client.line() == b"one\n"
        assert client.process.stdout is not None
        client.process.stdout.close()  # as `head -1` does; no further message comes
        assert client.process.wait(10) == 0
        assert len(client.said) == 1, client.said


def test_listen_shows_time_id_and_type_on_a_terminal(dev: Dev) -> None:
    words = ("send", "screen", "hello", "--id", "m-7", "--type", "greeting")
    sent: list[str] = []
    sender = threading.Thread(target=lambda: sent.append(send_when_connected(dev, words)))
    sender.start()
    shown = on_terminal(dev, "listen", "screen", "--count", "1")
    sender.join()
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3}  m-7  greeting  hello\r\n", shown), shown


def send_when_connected(dev: Dev, words: Sequence[str]) -> str:
    wait_until(lambda: dev.run(*words, "--wait").returncode == 0, "somebody listens")
    return "sent"


@pytest.mark.parametrize("transport", ["ws", "sse", "poll"])
def test_listen_says_in_the_gateways_words_why_it_is_refused(dev: Dev, transport: str) -> None:
    words = ("listen", "u", "--transport", transport, "--jwt-secret", "x" * 32)
    refused = dev.run(*words)
    assert refused.returncode == 1
    assert b"refused with 401: token refused: signed with another key" in refused.stderr


# dev's console


def told(dev: Dev, act: Callable[[], object], kind: str, *parts: str) -> bool:
    """Whether the console has a line of a kind with these parts after `act`, within some attempts.

    A line may be held back, since another of its kind is less than a second old.
    """
    pattern = ".*".join(map(re.escape, parts))
    line = re.compile(rf"^\d\d:\d\d:\d\d {kind} +.*{pattern}", re.MULTILINE)
    for _ in range(5):
        act()
        with suppress(ProcessFailed):
            wait_until(lambda: line.search(dev.out), kind, timeout_seconds=1.5)
            return True
    return False


def test_records_that_reach_nobody_are_told_on_the_console(dev: Dev) -> None:
    bad = (b"u", b"x", {"push-ttl": b"soon"})
    good: tuple[bytes, bytes, dict[str, bytes]] = (b"nobody-here", b"x", {})
    rule = "push-ttl: whole seconds, 0 or more"
    assert told(dev, lambda: publish(dev, bad), "rejected", rule, "kept in push.dead"), dev.out
    cure = "pushgate listen nobody-here is one"
    assert told(dev, lambda: publish(dev, good), "offline", "for nobody-here", cure), dev.out


def test_refused_clients_and_gaps_are_told_on_the_console(dev: Dev) -> None:
    token = {"Authorization": f"Bearer {dev.command('token', 'gapped').strip()}"}
    poll = "/poll?wait=0"
    for path, fields, *line in (
        (poll, {"Authorization": "Bearer x"}, "refused 401", "not a JWT", "pushgate token USER"),
        (poll, {"Origin": "https://evil.example"}, "refused 403", "allow", "PUSHGATE_ORIGINS"),
        (f"{poll}&cursor=x", token, "gap", "may be missing: ", "PUSHGATE_RESUME_SECONDS (120)"),
        # The second connection of its user.
        ("/sse", token, "refused 503", "of this user: ", "PUSHGATE_MAX_CONNECTIONS_PER_USER"),
    ):
        assert told(dev, partial(get, dev, path, fields), *line), dev.out


def get(dev: Dev, path: str, fields: Mapping[str, str]) -> None:
    connection = http.client.HTTPConnection(LOOPBACK, dev.port, timeout=5.0)
    try:
        connection.request("GET", path, headers=fields)
        connection.getresponse().read()
    finally:
        connection.close()


def test_a_transactional_producer_stops_nothing(dev: Dev) -> None:
    async def commit_and_abort() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=dev.bootstrap, transactional_id="backend"
        ) as producer:
            for value, commits in ((b"1", True), (b"aborted", False), (b"2", True)):
                await producer.begin_transaction()
                await producer.send_and_wait("push", value, key=b"banking")
                await (producer.commit_transaction() if commits else producer.abort_transaction())

    with listening(dev, "banking") as client:
        asyncio.run(commit_and_abort())
        assert (client.line(), client.line()) == (b"1\n", b"2\n")
        assert dev.run("send", "banking", "3", "--wait").returncode == 0
        assert client.line() == b"3\n"
