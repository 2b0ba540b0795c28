"""The Kafka that tests run against: yours, else a real Apache Kafka, else the embedded broker.

1. `PUSHGATE_TEST_KAFKA`, a bootstrap string, where it is set.
2. Apache Kafka on 127.0.0.1, where Java 17 and Maven are installed. Its jars are fetched once,
   into the user's cache.
3. The broker of `pushgate dev`. Not where `PUSHGATE_REQUIRE_REAL_KAFKA` is 1: there it is an error.
"""

import base64
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pushgate.embedded import LOOPBACK, choose_port, tied_to_parent
from pushgate.embedded.kafka import PACKAGE_ROOT, broker_command

Kind = Literal["apache", "external", "embedded"]

KAFKA_VERSION = "4.1.0"
RESTRICTED_USER = "restricted"
#: What a topic gets that no one created, here as in the embedded broker.
PARTITIONS = 4

START_SECONDS = 60.0
STOP_SECONDS = 15.0
FETCH_SECONDS = 600.0
_STARTED = "Kafka Server started"
# The quick start of a process that lives for minutes, not the throughput of one that stays.
_JVM_FLAGS = ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
_LOGGING_FLAGS = [
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
]
_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>pushgate</groupId>
  <artifactId>test-kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


class KafkaError(Exception):
    """No broker could be had; the message says what was missing."""


@dataclass
class KafkaServer:
    """A broker that runs: where it is, what it is, and why it is no more than that."""

    bootstrap: str
    kind: Kind
    #: What stood in the way of a real broker; empty unless `kind` is embedded.
    missing: str = ""
    #: Where RESTRICTED_USER logs in, of a strict broker.
    sasl_bootstrap: str = ""
    #: The folder of Apache Kafka's jars, which have its client too; None for another broker.
    jars: Path | None = None
    _process: subprocess.Popen[bytes] | None = None
    _cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): it still accepts connections, and answers nobody."""
        self._owned().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen broker go on."""
        self._owned().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its files; an external one is left as it is."""
        if self._process is not None:
            _end(self._process)
        self._cleanup.close()

    def _owned(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "PUSHGATE_TEST_KAFKA is not ours to stop or freeze"
        return self._process


def start_strict_kafka(environ: Mapping[str, str] = os.environ) -> KafkaServer:
    """Start an Apache Kafka that creates no topic by itself; KafkaError where there is none.

    On `bootstrap` everything is allowed. On `sasl_bootstrap` RESTRICTED_USER logs in (SASL PLAIN,
    the password is the name), who may do what no ACL forbids.
    """
    return _start_apache(_fetched_jars(_cache_directory(environ)), strict=True)


def start_kafka(environ: Mapping[str, str] = os.environ) -> KafkaServer:
    """Start, or find, the broker that this module describes; KafkaError where there is none."""
    if bootstrap := environ.get("PUSHGATE_TEST_KAFKA"):
        return KafkaServer(bootstrap, "external")
    try:
        return _start_apache(_fetched_jars(_cache_directory(environ)))
    except KafkaError as error:
        if environ.get("PUSHGATE_REQUIRE_REAL_KAFKA") == "1":
            raise KafkaError(f"PUSHGATE_REQUIRE_REAL_KAFKA is set, and {error}") from error
        return _start_embedded(str(error))


def _start_embedded(missing: str) -> KafkaServer:
    process = subprocess.Popen(
        broker_command(0),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PACKAGE_ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    # It prints its address or ends: both end this read.
    bootstrap = process.stdout.readline().decode().strip()
    if not bootstrap:
        _end(process)
        raise KafkaError(f"{missing}, and the embedded broker did not start (see its output)")
    return KafkaServer(bootstrap, "embedded", missing, _process=process)


def _start_apache(jars: Path, *, strict: bool = False) -> KafkaServer:
    with contextlib.ExitStack() as cleanup:
        directory = Path(
            cleanup.enter_context(tempfile.TemporaryDirectory(prefix="pushgate-kafka-"))
        )
        bootstrap = f"{LOOPBACK}:{choose_port()}"
        settings = directory / "server.properties"
        sasl_bootstrap = f"{LOOPBACK}:{choose_port()}" if strict else ""
        settings.write_text(_server_properties(bootstrap, directory, sasl_bootstrap))
        _format_storage(jars, settings)
        process = _run_server(jars, settings, directory / "log")
        cleanup.callback(_end, process)
        _await_start(process, directory / "log")
        # pop_all: from here on it is the server's to clean up.
        return KafkaServer(
            bootstrap, "apache", "", sasl_bootstrap, jars, process, cleanup.pop_all()
        )
    raise AssertionError("unreachable: no exception is suppressed above")


def _server_properties(bootstrap: str, directory: Path, sasl_bootstrap: str) -> str:
    controller = f"{LOOPBACK}:{choose_port()}"
    single = {
        f"{topic}.replication.factor": 1
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
    }
    settings: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "listeners": f"PLAINTEXT://{bootstrap},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{bootstrap}",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@{controller}",
        "log.dirs": directory / "data",
        "num.partitions": PARTITIONS,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # A group forms at once, and a member that dies is missed within a test's patience.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        **single,
    }
    if sasl_bootstrap:
        settings |= _strictness(settings, sasl_bootstrap)
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _strictness(settings: Mapping[str, object], sasl_bootstrap: str) -> dict[str, object]:
    """Give the settings of a broker that creates no topics and has a user who may be restricted."""
    listener = f"SASL_PLAINTEXT://{sasl_bootstrap}"
    login = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return {
        "auto.create.topics.enable": "false",
        "listeners": f"{settings['listeners']},{listener}",
        "advertised.listeners": f"{settings['advertised.listeners']},{listener}",
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT"
        ),
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            f'{login} required user_{RESTRICTED_USER}="{RESTRICTED_USER}";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
    }


def _java(jars: Path) -> list[str]:
    return ["java", *_JVM_FLAGS, *_LOGGING_FLAGS, "-cp", f"{jars}/*"]


def _format_storage(jars: Path, settings: Path) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = [*_java(jars), "kafka.tools.StorageTool", "format", "--ignore-formatted"]
    _run([*tool, f"--cluster-id={cluster_id}", "--config", str(settings)], START_SECONDS)


def _run_server(jars: Path, settings: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            tied_to_parent([*_java(jars), "kafka.Kafka", str(settings)]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_start(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _STARTED not in (text := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise KafkaError(f"Apache Kafka did not start: {text[-2000:]}")
        time.sleep(0.05)


def _cache_directory(environ: Mapping[str, str]) -> Path:
    cache = environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "pushgate"


def _fetched_jars(cache: Path) -> Path:
    """Give the folder of Kafka's jars, fetched if need be; KafkaError says what is missing."""
    _require_java()
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    if shutil.which("mvn") is None:
        raise KafkaError("there is no Maven to fetch Apache Kafka with")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{jars.name}.lock"):
        # Whoever held the lock before may have fetched them.
        if not jars.is_dir():
            _fetch(jars)
    return jars


def _fetch(jars: Path) -> None:
    with tempfile.TemporaryDirectory(dir=jars.parent) as scratch:
        pom, fetched = Path(scratch, "pom.xml"), Path(scratch, "lib")
        pom.write_text(_POM)
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        _run(["mvn", "--quiet", "--batch-mode", "--file", str(pom), *goal], FETCH_SECONDS)
        # In one step and last: a folder with that name is whole.
        fetched.rename(jars)


def _require_java() -> None:
    if shutil.which("java") is None:
        raise KafkaError("there is no Java")
    version = re.search(r'version "(\d+)', _run(["java", "-version"], START_SECONDS))
    if version is None or int(version[1]) < 17:
        raise KafkaError("Java is older than 17")


def _run(command: list[str], timeout_seconds: float) -> str:
    """Run `command` to its end and give its output; KafkaError where it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=timeout_seconds,
        )
    except subprocess.CalledProcessError as error:
        raise KafkaError(f"{command[0]} failed: {error.stdout[-2000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise KafkaError(f"{command[0]} took more than {timeout_seconds:g} s") from error
    return done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that may be frozen or gone, and close its pipes."""
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
