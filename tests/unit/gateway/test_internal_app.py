"""The internal application, called as a listener does: what it says of a node with many users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from starlette.types import Message, Scope

from gateway.connections.repeats import Repeats
from gateway.internal import MOST_LISTED, USERS_A_TURN, internal_app
from gateway.links import Links
from gateway.push import Pusher
from registry.directory import RegistryRefuses
from registry.refusals import CURES
from registry.status import Status
from tests.support.clients import eventually
from tests.unit.gateway.connections.test_node import Rig
from tests.unit.gateway.fakes import NODE, FakeConnection, identity

pytestmark = pytest.mark.anyio

MANY: int = 100_000
SECRET = "internal secret"


class Request:
    """One request of the application, and what is sent for it."""

    def __init__(self, rig: Rig, path: str) -> None:
        pusher = Pusher(
            rig.node.hub, Repeats(0), rig.node.as_of, epoch="e1", max_payload_bytes=1_000
        )
        self._app = internal_app(
            rig.node,
            pusher,
            Links(rig.node, pusher),
            None,
            secrets=[SECRET],
            max_payload_bytes=1_000,
            drain=lambda: None,
        )
        self._path = path
        self.status = 0
        self.pieces: list[bytes] = []
        self.turns: list[int] = []  # how many turns the event loop had had with each piece
        self.on_piece: Callable[[int], object] = lambda _: None  # told how many there are
        self._turn = 0

    async def answer(self) -> bytes:
        """Give the body, sent to a client that takes it as it comes."""
        turning = asyncio.create_task(self._count_turns())
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": self._path,
            "raw_path": self._path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {SECRET}".encode())],
        }
        await self._app(scope, self._receive, self._send)
        turning.cancel()
        return b"".join(self.pieces)

    async def _receive(self) -> Message:
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.pieces.append(message["body"])
            self.turns.append(self._turn)
            self.on_piece(len(self.pieces))

    async def _count_turns(self) -> None:
        while True:
            await asyncio.sleep(0)
            self._turn += 1


def hold(rig: Rig, *users: str) -> list[FakeConnection]:
    connections = [FakeConnection(identity(user)) for user in users]
    for connection in connections:
        rig.hub.add(connection)
    return connections


async def told(rig: Rig) -> dict[str, int]:
    request = Request(rig, "/connections")
    form = msgspec.json.decode(await request.answer())
    assert request.status == 200
    assert (form["node"], form["epoch"]) == (NODE.name, NODE.epoch)
    assert form.keys() == {"node", "epoch", "users"}
    users: dict[str, int] = form["users"]
    return users


async def test_a_node_without_users_says_so() -> None:
    assert await told(Rig()) == {}


async def test_users_are_told_with_the_number_of_their_connections() -> None:
    rig = Rig()
    names = ["alice", "bob", "alice", 'q"uote', "back\\slash", "ü 漢", "alice", "\u2028", "é" * 128]
    hold(rig, *names)
    assert await told(rig) == {name: names.count(name) for name in names}


@pytest.mark.parametrize("count", [1, 999, 1_000, 1_001, 2_000])
async def test_no_user_is_lost_between_two_pieces(count: int) -> None:
    rig = Rig()
    names = [f"u{number}" for number in range(count)]
    hold(rig, *names)
    assert await told(rig) == dict.fromkeys(names, 1)


async def test_users_who_leave_before_their_turn_are_not_told() -> None:
    rig = Rig()
    held = hold(rig, *(f"u{number}" for number in range(3 * USERS_A_TURN)))
    request = Request(rig, "/connections")

    def come_and_go(pieces: int) -> None:
        if pieces == 2:  # the beginning, and the first of the users
            for connection in held[USERS_A_TURN : 2 * USERS_A_TURN]:
                rig.hub.remove(connection)
            hold(rig, "late")

    request.on_piece = come_and_go
    users = msgspec.json.decode(await request.answer())["users"]
    left = held[:USERS_A_TURN] + held[2 * USERS_A_TURN :]
    assert users.keys() == {connection.user for connection in left}


async def test_a_user_with_more_connections_than_are_listed_has_their_number() -> None:
    rig = Rig()
    held = hold(rig, *["alice"] * (MOST_LISTED + 1), "bob")
    request = Request(rig, "/connections/alice")
    listing = msgspec.json.decode(await request.answer())
    assert (request.status, listing["total"]) == (200, MOST_LISTED + 1)
    assert [each["id"] for each in listing["connections"]] == [
        connection.id for connection in held[:MOST_LISTED]
    ]


async def test_many_users_are_told_in_small_pieces_with_turns_for_others_between() -> None:
    rig = Rig()
    hold(rig, *(f"user-{number}" for number in range(MANY)))
    request = Request(rig, "/connections")
    form = msgspec.json.decode(await request.answer())
    assert len(form["users"]) == MANY
    assert max(map(len, request.pieces)) < 32 * USERS_A_TURN
    pieces = request.turns[1 : 1 + MANY // USERS_A_TURN]
    assert pieces == sorted(set(pieces)), "two pieces in one turn of the loop"


async def test_readyz_names_what_is_wrong_with_the_registry() -> None:
    rig = Rig()
    ready = Request(rig, "/readyz")
    assert msgspec.json.decode(await ready.answer()) == {"status": "ready"}
    rig.registry.refusal = RegistryRefuses("OOM", "command not allowed", where="redis:6379")
    registrar = asyncio.create_task(rig.node.registrar.run())
    await eventually(lambda: rig.node.registrar.warning, "it is noticed")
    registrar.cancel()
    warned = Request(rig, "/readyz")
    assert msgspec.json.decode(await warned.answer()) == {
        "status": "ready",
        "warnings": [f"the registry refuses writes (OOM): {CURES['OOM']}"],
    }
    assert warned.status == 200, "a node that is ready stays ready"


async def test_the_status_has_what_readyz_says_and_all_metrics() -> None:
    rig = Rig()
    request = Request(rig, "/status")
    status = msgspec.json.decode(await request.answer(), type=Status)
    assert (request.status, status.kind) == (200, "gateway")
    assert (status.name, status.epoch, status.address) == (NODE.name, NODE.epoch, NODE.address)
    assert (status.status, status.drain_seconds) == (rig.node.status, None)
    assert 0 <= status.now_ms - status.started_ms < 60_000
    assert "pushgate_gateway_links" in status.metrics
