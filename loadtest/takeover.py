"""Ten take-overs in a row under load: who notices, how long anybody waits, what memory is left.

One gateway with 15,000 connections (WebSocket plain and v1, SSE, and long-poll sessions with a
parked poll), two processors, a real Kafka and a Valkey; 500 messages a second go to all users in
turn. Ten times the next gateway process takes over from the running one. Meanwhile some clients
read nothing, so that messages for them are unsent, and some have sent half of a frame.

No client may lose its connection: a lost connection, or an end of a poll that is no answer, is an
error. Each message has to arrive once and in order (ledger.py). Timed: from Kafka's acknowledgement
to the client's read, the longest of all messages, in the ten take-overs against ten calm times of
the same length before. Memory: that of the last process a minute after its take-over, against that
of the first, which took all connections by their handshakes, a minute after the last of these.

What could fool the drill: the clients share the two cores with the servers, so a wait is also that
of a busy client; so it is in the calm times. A client gets a message every half minute, so a pause
that is short and of few clients may be missed by the times of messages; the gateway measures the
longest pause of any connection itself, and the drill prints it. `--restart` is the negative
control: the gateway is restarted in place of the take-over, and the drill has to fail.

    python -m loadtest.takeover [--connections 15000] [--times 10] [--restart] [--save]
"""

from __future__ import annotations

import argparse
import re
import select
import socket
import subprocess
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from loadtest.clients import Crowd, WebSocketClient
from loadtest.kafka import create_topics, delete_topics, real_kafka
from loadtest.ledger import Ledger
from loadtest.processes import BEARER, Gateway, LoadtestError, Processor, tokens
from loadtest.produce import produce_command
from loadtest.report import Report
from tests.support.valkey import RedisServer

#: How much longer a client may wait for a message than in calm times.
LONGER_SECONDS: Final = 0.25
#: How far the memory of the last process may be from that of the first.
MEMORY_SHARE: Final = 0.10
#: Of all connections; the others are plain WebSockets.
_SHARES: Final = {"v1": 0.3, "sse": 0.3, "poll": 1 / 15}
#: The last parts of the clients' addresses, 127.0.0.x: those of a kind begin so far apart.
_FIRST_ADDRESS: Final = 20
_ADDRESSES: Final = 10
_SLOW: Final = 50
_HALTED: Final = 50
#: Messages for a slow client before each take-over: more than the kernel's buffers take.
_UNSENT: Final = 3
_UNSENT_BYTES: Final = 40_000
_TOPIC: Final = "takeover"
_PARTITIONS: Final = 4
_PROCESSORS: Final = 2
#: From the start of a take-over: the time of a window, whether calm or not.
_WINDOW_SECONDS: Final = 8.0
#: For how long hindered clients are hindered in a calm window.
_CALM_SECONDS: Final = 3.0
#: The clients have read what came while hindered clients were made.
_CAUGHT_UP_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 120.0
_BODY: Final = b"half of a frame"
#: Masked by zeros (RFC 6455 §5.3).
_PING: Final = bytes((0x89, 0x80 | len(_BODY), 0, 0, 0, 0)) + _BODY
_PONG: Final = bytes((0x8A, len(_BODY))) + _BODY
_LONGEST: Final = re.compile(r"longest_pause_seconds=([0-9.]+)")


class Crowds:
    """Crowds of several kinds that one thread serves."""

    def __init__(self, crowds: Sequence[Crowd]) -> None:
        self._crowds: dict[int, Crowd] = {}
        self._ready = select.epoll()
        for crowd in crowds:
            self.add(crowd)

    def add(self, crowd: Crowd) -> None:
        """Serve one more crowd."""
        self._crowds[crowd.descriptor] = crowd
        self._ready.register(crowd.descriptor, select.EPOLLIN)

    def remove(self, crowd: Crowd) -> None:
        """Serve a crowd no more."""
        self._ready.unregister(crowd.descriptor)
        del self._crowds[crowd.descriptor]

    def until(self, done: Callable[[], object], *, seconds: float = _PATIENCE_SECONDS) -> None:
        """Take inbound bytes until `done` returns true.

        Raises:
            LoadtestError: a connection was lost, or `done` was still false after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                raise LoadtestError(f"not done within {seconds:g} s")
            for descriptor, _ in self._ready.poll(0.02):
                self._crowds[descriptor].turn(0)

    def rest(self, seconds: float) -> None:
        """Take inbound bytes for `seconds`."""
        ends = time.monotonic() + max(0.0, seconds)
        self.until(lambda: time.monotonic() >= ends, seconds=seconds + _PATIENCE_SECONDS)


class Slow:
    """Clients that read nothing for a while, and then find everything in order."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._users = [f"slow-{number}" for number in range(_SLOW)]
        self._received: dict[str, list[bytes]] = {user: [] for user in self._users}
        self._sent: list[bytes] = []
        self._crowd = Crowd(gateway.port, "ws", first_address=60, receive_bytes=4_096)
        self._crowd.connect(
            tokens(self._users), on_message=[self._received[user].append for user in self._users]
        )
        self._burden()

    def _burden(self) -> None:
        """Push more than the kernel's buffers take, to each of the clients."""
        url = f"http://127.0.0.1:{self._gateway.internal_ports[0]}/push"
        for number in range(_UNSENT):
            data = b"%d " % number + b"y" * _UNSENT_BYTES
            self._sent.append(data)
            messages = [{"user": user, "data": data.decode()} for user in self._users]
            answer = httpx.post(url, json=messages, headers=BEARER, trust_env=False)
            if answer.json()["results"] != [1] * len(messages):
                raise LoadtestError(f"slow clients have no room: {answer.text[:200]}")

    def relieve(self, crowds: Crowds) -> None:
        """Read everything that was pushed, while the others go on.

        Raises:
            LoadtestError: a client did not get each message once and in order.
        """
        crowds.add(self._crowd)
        crowds.until(lambda: all(len(got) >= len(self._sent) for got in self._received.values()))
        crowds.remove(self._crowd)
        if any(got != self._sent for got in self._received.values()):
            raise LoadtestError("slow clients did not get each message once and in order")

    def close(self) -> None:
        """Close every connection."""
        self._crowd.close()


class Halted:
    """WebSockets that have sent half of a Ping frame."""

    def __init__(self, gateway: Gateway) -> None:
        users = [f"halted-{number}" for number in range(_HALTED)]
        self._plugs = [self._opened(gateway.port, token) for token in tokens(users)]
        for plug in self._plugs:
            plug.sendall(_PING[: len(_PING) // 2])

    @staticmethod
    def _opened(port: int, token: str) -> socket.socket:
        plug = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)
        plug.sendall(WebSocketClient.request("/ws", token))
        if not plug.recv(65_536).startswith(b"HTTP/1.1 101 "):
            raise LoadtestError("a handshake was refused")
        return plug

    def relieve(self) -> None:
        """Send the rest, and see the Pong.

        Raises:
            LoadtestError: a connection was lost.
        """
        for plug in self._plugs:
            plug.sendall(_PING[len(_PING) // 2 :])
            answer = b""
            while _PONG not in answer:
                data = plug.recv(65_536)
                if not data:
                    raise LoadtestError("a client in the middle of a frame lost its connection")
                answer += data

    def close(self) -> None:
        """Close every connection."""
        for plug in self._plugs:
            plug.close()


@dataclass
class Account:
    """When the windows began, how long take-overs took, and the memory of the processes."""

    calm: list[float] = field(default_factory=list)
    taken_over: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    first_bytes: int = 0
    last_bytes: int = 0


def renew(gateway: Gateway, crowds: Crowds, account: Account, *, restart: bool) -> None:
    """Have the next process take over, while the clients go on.

    Raises:
        LoadtestError: a client noticed, or the earlier process did not end with 0.
    """
    began = time.monotonic()
    if restart:
        gateway.stop()
    earlier = gateway.launch()
    try:
        crowds.until(lambda: earlier is None or earlier.poll() is not None)
    finally:
        if earlier is not None:
            earlier.kill()
            earlier.wait()
    account.seconds.append(time.monotonic() - began)
    if (earlier and earlier.returncode) or gateway.returncode is not None:
        raise LoadtestError(f"no take-over: {gateway.log()}")
    account.pauses.append(_longest_pause(gateway.log()))


def _longest_pause(log: str) -> float:
    found = _LONGEST.findall(log)
    if not found:
        raise LoadtestError(f"the earlier process does not say how long a pause was: {log}")
    return float(found[-1])


@contextmanager
def hindered(gateway: Gateway, crowds: Crowds, began: list[float]) -> Iterator[None]:
    """Have clients with unsent messages, and in the middle of a frame; at the end all go on.

    The start of the window is added to `began`: until then the others are not served.
    """
    with closing(Slow(gateway)) as slow, closing(Halted(gateway)) as halted:
        crowds.rest(_CAUGHT_UP_SECONDS)
        began.append(time.monotonic())
        yield
        halted.relieve()
        slow.relieve(crowds)
        crowds.rest(began[-1] + _WINDOW_SECONDS - time.monotonic())


@contextmanager
def _publishing(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    publisher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield publisher
    finally:
        publisher.kill()
        publisher.wait()


@contextmanager
def staged(
    arguments: argparse.Namespace, kafka: str, redis_url: str, ledger: Ledger
) -> Iterator[tuple[Gateway, Crowds]]:
    """Yield a gateway with its clients, and two processors; remove the topic at the end."""
    counts = {kind: round(arguments.connections * share) for kind, share in _SHARES.items()}
    counts["ws"] = arguments.connections - sum(counts.values())
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        create_topics(kafka, [_TOPIC], partitions=_PARTITIONS)
        stack.callback(delete_topics, kafka, [_TOPIC])
        gateway = stack.enter_context(
            Gateway(
                redis_url,
                takeover_socket=directory / "gateway",
                heartbeat_timeout_seconds=_PATIENCE_SECONDS,  # slow clients take nothing for long
            )
        )
        for _ in range(_PROCESSORS):
            stack.enter_context(Processor(redis_url, kafka, topic=_TOPIC, group=_TOPIC))
        crowds: list[Crowd] = []
        first = 0
        for number, (kind, count) in enumerate(counts.items()):
            address = _FIRST_ADDRESS + _ADDRESSES * number
            crowd = Crowd(gateway.port, kind, first_address=address)
            crowds.append(stack.enter_context(closing(crowd)))
            users = range(first, first := first + count)
            crowd.connect(
                tokens([f"user-{user}" for user in users]),
                on_message=[ledger.taker(user) for user in users],
            )
        yield gateway, Crowds(crowds)


def run(arguments: argparse.Namespace, kafka: str, redis_url: str) -> tuple[Account, list[float]]:
    """Return the account, and the longest time of a message in calm windows and in take-overs.

    Raises:
        LoadtestError: a client noticed, or a message was lost, repeated or out of order.
    """
    seconds = 2 * _SETTLE_SECONDS + 3 * arguments.times * _WINDOW_SECONDS
    per_user = max(2, round(arguments.rate * seconds / arguments.connections))
    ledger = Ledger(arguments.connections, per_user=per_user, timed=True)
    with (
        tempfile.NamedTemporaryFile() as times,
        staged(arguments, kafka, redis_url, ledger) as (gateway, crowds),
    ):
        command = produce_command(
            kafka=kafka, topic=_TOPIC, messages=ledger.expected, users=arguments.connections,
            rate=arguments.rate, acknowledged=times.name,
        )  # fmt: skip
        with _publishing(command) as publisher:
            account = take_over(gateway, crowds, ledger, arguments)
            crowds.until(lambda: ledger.count >= ledger.expected, seconds=seconds)
            if publisher.wait(_PATIENCE_SECONDS):
                raise LoadtestError("could not publish")
        check(ledger)
        return account, longest(ledger, array("d", times.read()), account)


def take_over(
    gateway: Gateway, crowds: Crowds, ledger: Ledger, arguments: argparse.Namespace
) -> Account:
    """Leave the clients in peace for some windows, and then take over again and again."""
    account = Account()
    crowds.until(lambda: ledger.count)
    crowds.rest(_SETTLE_SECONDS)
    account.first_bytes = gateway.memory().anonymous
    for _ in range(arguments.times):
        with hindered(gateway, crowds, account.calm):
            crowds.rest(_CALM_SECONDS)
    for _ in range(arguments.times):
        with hindered(gateway, crowds, account.taken_over):
            renew(gateway, crowds, account, restart=arguments.restart)
    crowds.rest(_SETTLE_SECONDS)
    account.last_bytes = gateway.memory().anonymous
    return account


def check(ledger: Ledger) -> None:
    """Check that each message has arrived once and in order.

    Raises:
        LoadtestError: the text has the counts.
    """
    account = {
        "missing": ledger.missing,
        "repeated": ledger.repeated,
        "out of order": ledger.out_of_order,
    }
    if any(account.values()):
        raise LoadtestError(f"not each message once and in order: {account}")


def longest(ledger: Ledger, acknowledged: array[float], account: Account) -> list[float]:
    """Return the longest time of a message acknowledged in calm windows, and in take-overs."""
    worst = []
    for windows in (account.calm, account.taken_over):
        waits = [
            arrived - sent
            for sent, arrived in zip(acknowledged, ledger.arrived, strict=True)
            if any(began <= sent < began + _WINDOW_SECONDS for began in windows)
        ]
        worst.append(max(waits, default=0.0))
    return worst


def main() -> None:
    """Take over again and again."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.takeover")
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--connections", type=int, default=15_000)
    parser.add_argument("--times", type=int, default=10, help="take-overs, one after the other")
    parser.add_argument("--rate", type=float, default=500.0, help="messages a second")
    parser.add_argument("--restart", action="store_true", help="the negative control: must fail")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("takeover")
    with real_kafka(arguments.kafka) as kafka, RedisServer("valkey") as redis:
        account, (calm, busy) = run(arguments, kafka, redis.url)
    share = account.last_bytes / account.first_bytes - 1
    report.figures.update(
        connections=arguments.connections,
        times=arguments.times,
        messages_per_second=arguments.rate,
        longest_calm_seconds=calm,
        longest_in_takeovers_seconds=busy,
        takeover_seconds=account.seconds,
        pauses_seconds=account.pauses,
        first_bytes=account.first_bytes,
        last_bytes=account.last_bytes,
    )
    report.line(
        f"{arguments.connections:,} connections, {arguments.times} take-overs of "
        f"{max(account.seconds):.1f} s at most: no client lost its connection, each message once "
        f"and in order; the longest of a message {busy * 1e3:.0f} ms, in calm times "
        f"{calm * 1e3:.0f} ms; the longest pause of a connection "
        f"{max(account.pauses) * 1e3:.0f} ms; memory {share:+.1%}"
    )
    report.bound(
        f"≤ {LONGER_SECONDS * 1e3:g} ms longer than in calm times",
        holds=busy - calm <= LONGER_SECONDS,
    )
    report.bound(f"memory ± {MEMORY_SHARE:.0%}", holds=abs(share) <= MEMORY_SHARE)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
