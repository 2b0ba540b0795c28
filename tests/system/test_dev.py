"""`pushgate dev`: the whole system on embedded parts, from its start to nothing left."""

import contextlib
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pushgate.embedded import LOOPBACK, tied_to_parent
from tests.support.kafka import KafkaServer
from tests.support.processes import free_port, http_status, wait_until
from tests.system.dev_process import STOP_SECONDS, Dev

KCAT_RECORD = "-X partitioner=murmur2_random -t push -k alice"


@pytest.fixture
def devs() -> Iterator[list[Dev]]:
    started: list[Dev] = []
    yield started
    for dev in started:
        dev.end()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def test_dev_is_up_serves_its_page_and_leaves_nothing_behind(
    tmp_path: Path, devs: list[Dev]
) -> None:
    dev = Dev(tmp_path)
    devs.append(dev)
    dev.until_up()
    assert http_status(dev.port, "/") == 200
    servers = [int(port) for port in re.findall(r"(?:Kafka +\S+:|127\.0\.0\.1:)(\d+)", dev.out)]
    assert dev.interrupt() == 0
    assert [port for port in servers if port != 9092 and answers(port)] == []


def test_what_dev_made_up_is_its_owners_alone_and_read_by_the_other_commands(
    tmp_path: Path, devs: list[Dev]
) -> None:
    dev = Dev(tmp_path)
    devs.append(dev)
    dev.until_up()
    kept = tmp_path / ".pushgate" / "dev.env"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert "PUSHGATE_JWT_SECRET" in kept.read_text()
    assert dev.command("token", "alice").count(".") == 2
    with subprocess.Popen(
        tied_to_parent([sys.executable, "-m", "pushgate", "listen", "alice"]),
        env=dev.inherited,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as listening:
        assert listening.stdout is not None
        # A record from before the client came would be for an offline user.
        internal = re.search(r"internal +(\S+)", dev.out)
        assert internal is not None
        wait_until(lambda: connected(internal[1]), "alice is connected")
        dev.command("send", "alice", "hello")
        assert listening.stdout.readline() == b"hello\n"
        listening.kill()


def connected(internal: str) -> bool:
    import http.client

    connection = http.client.HTTPConnection(internal, timeout=2.0)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return 'pushgate_gateway_connections{transport="websocket"} 1.0' in text


def test_pages_of_this_machine_connect_to_dev_and_none_by_its_cookie(
    tmp_path: Path, devs: list[Dev]
) -> None:
    dev = Dev(tmp_path)
    devs.append(dev)
    dev.until_up()
    token = dev.command("token", "alice").strip()
    bearer, cookie = {"Authorization": f"Bearer {token}"}, {"Cookie": f"pushgate_token={token}"}
    for origin in ("http://localhost:5173", "https://127.0.0.1:1", "http://[::1]:80", "null"):
        assert poll_status(dev.port, bearer | {"Origin": origin}) == 200
        assert poll_status(dev.port, cookie | {"Origin": origin}) == 401
    own = {"Origin": f"http://{LOOPBACK}:{dev.port}"}
    assert poll_status(dev.port, cookie | own) == 200
    for origin in ("https://evil.example", "http://localhost.evil", "file://"):
        assert poll_status(dev.port, bearer | {"Origin": origin}) == 403


def poll_status(port: int, fields: dict[str, str]) -> int:
    import http.client

    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5.0)
    try:
        connection.request("GET", "/poll?wait=0", headers=fields)
        return connection.getresponse().status
    finally:
        connection.close()


def test_secrets_outlive_a_restart(tmp_path: Path, devs: list[Dev]) -> None:
    secrets = []
    for _ in range(2):
        dev = Dev(tmp_path)
        devs.append(dev)
        (tmp_path / "out").write_text("")
        dev.until_up()
        lines = (tmp_path / ".pushgate" / "dev.env").read_text().splitlines()
        secrets.append([line for line in lines if "SECRET" in line])
        assert dev.interrupt() == 0
    assert secrets[0] == secrets[1]
    assert len(secrets[0]) == 2


def test_dev_takes_the_redis_and_the_kafka_it_is_given(
    tmp_path: Path, devs: list[Dev], redis_url: str, kafka: KafkaServer, topic: str
) -> None:
    dev = Dev(
        tmp_path, REDIS_URL=redis_url, KAFKA_BOOTSTRAP=kafka.bootstrap, KAFKA_TOPICS=topic,
        KAFKA_GROUP=f"dev-{topic}",
    )  # fmt: skip
    devs.append(dev)
    dev.until_up()
    assert redis_url in dev.out
    assert kafka.bootstrap in dev.out
    assert dev.interrupt() == 0


def test_a_port_that_is_taken_is_named(tmp_path: Path, devs: list[Dev]) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        for setting in ("PORT", "PROCESSOR_PORT", "EMBEDDED_KAFKA_PORT", "EMBEDDED_REDIS_PORT"):
            (tmp_path / "out").write_text("")
            dev = Dev(tmp_path, **{setting: str(port)})
            devs.append(dev)
            assert dev.process.wait(STOP_SECONDS) == 1
            assert f"127.0.0.1 port {port}" in dev.out
            assert f"set PUSHGATE_{setting} to another port" in dev.out
            assert "Traceback" not in dev.out


def test_ports_of_the_embedded_servers_can_be_chosen(tmp_path: Path, devs: list[Dev]) -> None:
    kafka, redis = free_port(), free_port()
    dev = Dev(tmp_path, EMBEDDED_KAFKA_PORT=str(kafka), EMBEDDED_REDIS_PORT=str(redis))
    devs.append(dev)
    dev.until_up()
    assert f"kcat -P -b {LOOPBACK}:{kafka} {KCAT_RECORD}\n" in dev.out
    assert f"redis://{LOOPBACK}:{redis}/0" in dev.out
    assert "another process" not in dev.out


def test_a_default_kafka_port_that_is_taken_is_said_with_the_port_in_use(
    tmp_path: Path, devs: list[Dev]
) -> None:
    with taken(9092):
        dev = Dev(tmp_path)
        devs.append(dev)
        dev.until_up()
    host, _, port = dev.bootstrap.partition(":")
    assert (host, port != "9092") == (LOOPBACK, True)
    assert f"kcat -P -b {dev.bootstrap} {KCAT_RECORD}\n  (port 9092 is " in dev.out


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    """Hold a port, once no other test holds it."""
    with contextlib.ExitStack() as held:

        def take() -> bool:
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server((LOOPBACK, port)))
                return True
            return False

        wait_until(take, f"port {port} is free")
        yield


def test_a_second_dev_in_the_folder_is_told_so_and_changes_nothing(
    tmp_path: Path, devs: list[Dev]
) -> None:
    first = Dev(tmp_path)
    devs.append(first)
    first.until_up()
    kept = (tmp_path / ".pushgate" / "dev.env").read_text()
    second = Dev(tmp_path)
    devs.append(second)
    assert second.process.wait(STOP_SECONDS) == 1
    assert f"runs in this folder already (process {first.process.pid};" in first.out
    assert (tmp_path / ".pushgate" / "dev.env").read_text() == kept
    assert http_status(first.port, "/") == 200
    first.process.kill()
    first.process.wait(STOP_SECONDS)
    third = Dev(tmp_path)
    devs.append(third)
    (tmp_path / "out").write_text("")
    third.until_up()
