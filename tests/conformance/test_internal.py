"""The internal listener: who may push, what a batch may be, and what it answers."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest

from processor.sending.forward import MISDIRECTED, Forwarder
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.message import Push
from registry.proof import proof
from registry.redis_store import RedisRegistry
from tests.support.clients import Pusher, connect, head, pusher_to, request, wire_to
from tests.support.processes import INTERNAL_SECRET, GatewayProcess

pytestmark = pytest.mark.anyio

SECRET = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
NOT_HERE = 0
INVALID = {"error": "invalid"}
MEBIBYTE = 1024 * 1024
#: method and path of all that needs the secret
GUARDED = [
    ("POST", "/push"),
    ("GET", "/push"),
    ("POST", "/push/u"),
    ("GET", "/push/u"),
    ("GET", "/status"),
    ("POST", "/drain"),
    ("GET", "/connections"),
    ("GET", "/connections/u"),
    ("DELETE", "/connections/u"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_without_the_secret_it_is_401(
    gateway: GatewayProcess, method: str, path: str
) -> None:
    answer = await request(gateway.internal_port, method, path, {"Content-Length": "0"})
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer, Pushgate"


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "given", ["Bearer wrong", "Bearer ", f"Basic {INTERNAL_SECRET}", f"Bearer {INTERNAL_SECRET}x"]
)
async def test_with_a_wrong_secret_it_is_403(
    gateway: GatewayProcess, method: str, path: str, given: str
) -> None:
    fields = {"Authorization": given, "Content-Length": "0"}
    assert (await request(gateway.internal_port, method, path, fields)).status == 403
    assert gateway.readyz() == 200


async def node_of(gateway: GatewayProcess) -> Node:
    """Give the node as it registers itself."""
    listing = (await request(gateway.internal_port, "GET", "/connections", SECRET)).json
    return Node(listing["node"], listing["epoch"], f"127.0.0.1:{gateway.internal_port}")


async def statuses_with(gateway: GatewayProcess, authorization: str) -> set[int]:
    """Give the statuses of what needs the secret and changes nothing."""
    fields = {"Authorization": authorization, "Content-Type": "application/json"}
    answers = [
        await request(
            gateway.internal_port, "POST", "/push", {**fields, "Content-Length": "2"}, body=b"[]"
        ),
        await request(gateway.internal_port, "GET", "/connections", fields),
    ]
    return {answer.status for answer in answers}


@pytest.mark.parametrize("scheme", ["Pushgate", "pushgate", "PUSHGATE"])
async def test_a_proof_for_this_node_is_let_in(gateway: GatewayProcess, scheme: str) -> None:
    made = proof(INTERNAL_SECRET, await node_of(gateway))
    assert await statuses_with(gateway, f"{scheme} {made}") == {200}


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "other",
    [
        {"name": "another"},
        {"epoch": "earlier"},
        {"address": "127.0.0.1:1"},
        {"address": "localhost:PORT"},
        {"address": "127.0.0.2:PORT"},
    ],
    ids=str,
)
async def test_a_proof_for_another_node_is_403(
    gateway: GatewayProcess, method: str, path: str, other: dict[str, str]
) -> None:
    port = str(gateway.internal_port)
    fields = {name: value.replace("PORT", port) for name, value in other.items()}
    made = proof(INTERNAL_SECRET, replace(await node_of(gateway), **fields))
    sent = {"Authorization": f"Pushgate {made}", "Content-Length": "0"}
    assert (await request(gateway.internal_port, method, path, sent)).status == 403
    assert gateway.readyz() == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("other", [{"name": "another"}, {"epoch": "earlier"}], ids=str)
async def test_a_call_to_a_node_that_was_at_this_address_before_is_421(
    gateway: GatewayProcess, method: str, path: str, other: dict[str, str]
) -> None:
    before = replace(await node_of(gateway), **other)
    names = {"Pushgate-Node": before.name, "Pushgate-Epoch": before.epoch, "Content-Length": "0"}
    elsewhere = replace(before, address="127.0.0.1:1")
    for made, status in (
        (proof(INTERNAL_SECRET, before), 421),
        (proof(INTERNAL_SECRET, elsewhere), 403),
        (proof(INTERNAL_SECRET + "x", before), 403),
        (proof(INTERNAL_SECRET, replace(before, epoch="another")), 403),
    ):
        sent = {"Authorization": f"Pushgate {made}", **names}
        assert (await request(gateway.internal_port, method, path, sent)).status == status
    for name in ("", "a b", "é", "x" * 65):
        sent = {"Authorization": "Pushgate v1.x", **names, "Pushgate-Node": name}
        assert (await request(gateway.internal_port, method, path, sent)).status == 403
    assert gateway.readyz() == 200


async def test_a_forward_to_an_earlier_start_finds_nobody_and_one_to_this_start_somebody(
    gateway: GatewayProcess, user: str
) -> None:
    node = await node_of(gateway)
    forwarder = Forwarder(Reach(GatewayCalls(secret=INTERNAL_SECRET)), timeout_seconds=5.0)
    async with connect("ws-plain", gateway.port, user) as client:
        message = Push(user, b"to one start", "m")
        earlier_start = replace(node, epoch="earlier")
        assert await forwarder.forward(earlier_start, [message]) == MISDIRECTED
        assert await forwarder.forward(node, [message]) == [1]
        assert (await client.message()).payload == b"to one start"
    await forwarder.close()


async def test_a_proof_that_is_not_quite_one_is_403(gateway: GatewayProcess) -> None:
    node = await node_of(gateway)
    made = proof(INTERNAL_SECRET, node)
    for wrong in (
        "Pushgate",
        "Pushgate ",
        f"Pushgate {INTERNAL_SECRET}",
        f"Pushgate {made[:-1]}",
        f"Pushgate {made}0",
        f"Pushgate {made.upper()}",
        f"Pushgate {made.removeprefix('v1.')}",
        f"Pushgate v2{made.removeprefix('v1')}",
        f"Pushgate {proof(INTERNAL_SECRET + 'x', node)}",
        f"Pushgate  {made}",
        f"Bearer {made}",
        f"Basic {made}",
        made,
    ):
        assert await statuses_with(gateway, wrong) == {403}, wrong


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_what_operators_read_is_open(gateway: GatewayProcess, path: str) -> None:
    assert (await request(gateway.internal_port, "GET", path)).status == 200


@pytest.mark.parametrize("path", ["//metrics/../push", "/metrics/../push", "/metrics?/push", "/x"])
async def test_no_spelling_of_a_path_gets_around_the_secret(
    gateway: GatewayProcess, pusher: Pusher, path: str, user: str
) -> None:
    body = json.dumps([{"user": user, "data": "x"}]).encode()
    async with connect("ws-plain", gateway.port, user) as client:
        fields = {"Content-Length": str(len(body))}
        answer = await request(gateway.internal_port, "POST", path, fields, body=body)
        assert answer.status in (401, 404, 405)
        await pusher.push_one(user, b"mine")
        assert (await client.message()).payload == b"mine"


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_nothing_internal_is_on_the_public_port(
    gateway: GatewayProcess, method: str, path: str
) -> None:
    answer = await request(gateway.port, method, path, {**SECRET, "Content-Length": "0"})
    assert answer.status == 404
    assert (await request(gateway.port, "GET", "/metrics", SECRET)).status == 404


async def test_the_routes_of_clients_are_not_on_the_internal_port(gateway: GatewayProcess) -> None:
    for path in ("/ws", "/sse", "/poll", "/pushgate.js"):
        assert (await request(gateway.internal_port, "GET", path, SECRET)).status == 404


@pytest.mark.parametrize("packed", [False, True], ids=["json", "messagepack"])
async def test_each_message_has_its_result(
    gateway: GatewayProcess, pusher: Pusher, packed: bool, user: str
) -> None:
    async with AsyncExitStack() as stack:
        for device in ("phone", "desk"):
            await stack.enter_async_context(connect("ws-v1", gateway.port, user, device=device))
        results = await pusher.push(
            [
                {"user": user, "data": "to both"},
                {"user": "nobody", "data": "x"},
                {"user": user, "data": "x", "device": "phone"},
                {"user": user, "data": "x", "device": "watch"},
                {"user": "nobody", "data": "x", "device": "watch"},
                {"user": user, "data": "x" * 65_537},
                {"user": user, "data": "é" * 32_768},
                {"user": user, "data": "x", "unknown": {"field": [1]}},
            ],
            packed=packed,
        )
    no_device, too_large = {"error": "no-device"}, {"error": "too-large"}
    assert results == [2, NOT_HERE, 1, no_device, NOT_HERE, too_large, 2, 2]


async def test_an_empty_batch_has_no_results(pusher: Pusher) -> None:
    assert await pusher.push([]) == []
    assert await pusher.push([], packed=True) == []


@pytest.mark.parametrize("packed", [False, True], ids=["json", "messagepack"])
@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"data": "x"},
        {"user": "USER"},
        {"user": None, "data": "x"},
        {"user": 7, "data": "x"},
        {"user": "", "data": "x"},
        {"user": "a\nb", "data": "x"},
        {"user": "x" * 257, "data": "x"},
        {"user": "USER", "data": None},
        {"user": "USER", "data": 7},
        {"user": "USER", "data": {"a": 1}},
        {"user": "USER", "data": "x", "id": "a b"},
        {"user": "USER", "data": "x", "id": "a\nb"},
        {"user": "USER", "data": "x", "id": ""},
        {"user": "USER", "data": "x", "id": 7},
        {"user": "USER", "data": "x", "id": "\u2028"},
        {"user": "USER", "data": "x", "type": "open"},
        {"user": "USER", "data": "x", "type": "error"},
        {"user": "USER", "data": "x", "type": "pushgate.binary"},
        {"user": "USER", "data": "x", "type": "a\ndata: b"},
        {"user": "USER", "data": "x", "type": "a\rb"},
        {"user": "USER", "data": "x", "type": "x" * 129},
        {"user": "USER", "data": "x", "device": "a\x00b"},
        {"user": "USER", "data": "x", "device": ["phone"]},
        {"user": "USER", "data": "not base64!", "encoding": "base64"},
        {"user": "USER", "data": "eA", "encoding": "base64"},
        {"user": "USER", "data": "x", "encoding": "gzip"},
        {"user": "USER", "data": "x", "encoding": 7},
        "a string",
        ["a", "list"],
        None,
        7,
    ],
)
async def test_an_invalid_message_harms_none_beside_it(
    gateway: GatewayProcess, pusher: Pusher, bad: object, packed: bool, user: str
) -> None:
    if isinstance(bad, dict) and bad.get("user") == "USER":
        bad = {**bad, "user": user}
    async with connect("sse", gateway.port, user) as client:
        batch: Sequence[dict[str, object]] = [
            {"user": user, "data": "before"},
            bad,  # type: ignore[list-item]
            {"user": user, "data": "after"},
        ]
        assert await pusher.push(batch, packed=packed) == [1, INVALID, 1]
        assert (await client.message()).payload == b"before"
        assert (await client.message()).payload == b"after"


async def test_a_lone_surrogate_is_refused_as_malformed_json(pusher: Pusher, user: str) -> None:
    for body in (r'[{"user": "u", "data": "\ud800"}]', r'[{"user": "\udfff", "data": "x"}]'):
        assert (await pusher.http.post("/push", content=body.encode())).status_code == 400


@pytest.mark.parametrize("field", ["user", "id", "type", "device"])
async def test_a_string_that_is_not_utf_8_harms_none_beside_it(
    gateway: GatewayProcess, pusher: Pusher, field: str, user: str
) -> None:
    good = {"user": user, "data": "good"}
    body = msgspec.msgpack.encode([{"user": user, "data": "x", field: "BAD"}, good])
    async with connect("ws-plain", gateway.port, user) as client:
        answer = await pusher.http.post(
            "/push",
            content=body.replace(b"BAD", b"\xff\xfe\xfd"),
            headers={"Content-Type": "application/msgpack"},
        )
        assert answer.status_code == 200
        assert msgspec.msgpack.decode(answer.content) == {"results": [INVALID, 1]}
        assert (await client.message()).payload == b"good"


async def test_json_that_is_not_utf_8_is_refused_and_never_fatal(pusher: Pusher) -> None:
    answer = await pusher.http.post("/push", content=b'[{"user": "u", "data": "\xff"}]')
    assert answer.status_code == 400 or answer.json() == {"results": [INVALID]}


async def test_a_list_of_users_has_a_list_of_results(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    other = f"{user}-other"
    async with (
        connect("ws-plain", gateway.port, user) as one,
        connect("poll", gateway.port, other) as two,
    ):
        results = await pusher.push(
            [
                {"user": [user, "nobody", other, ""], "data": "to all"},
                {"user": [], "data": "to none"},
                {"user": [user], "data": "x" * 65_537},
            ]
        )
        assert results == [[1, NOT_HERE, 1, INVALID], [], [{"error": "too-large"}]]
        assert (await one.message()).payload == b"to all"
        assert (await two.message()).payload == b"to all"


async def test_base64_carries_any_bytes_in_json(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    async with connect(transport, gateway.port, user) as client:
        for payload in (bytes(range(256)), b"plain text", b""):
            data = base64.b64encode(payload).decode()
            assert await pusher.push([{"user": user, "data": data, "encoding": "base64"}]) == [1]
            assert (await client.message()).payload == payload


async def test_base64_is_decoded_before_it_is_measured(pusher: Pusher, user: str) -> None:
    fits = base64.b64encode(b"x" * 65_536).decode()
    not_so = base64.b64encode(b"x" * 65_537).decode()
    results = await pusher.push(
        [{"user": user, "data": data, "encoding": "base64"} for data in (fits, not_so)]
    )
    assert results == [NOT_HERE, {"error": "too-large"}]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b'"x"', b"7", b"[", b'[{"user": "u"', b"\xff\xfe", b"[1] 2"]
)
async def test_what_is_no_list_is_400(pusher: Pusher, body: bytes) -> None:
    answer = await pusher.http.post(
        "/push", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400


@pytest.mark.parametrize("body", [b"", b"\x80", b"\xc0", b"\x91", b"\xc1", b"\xdd\xff\xff\xff\xff"])
async def test_what_is_no_list_in_messagepack_is_400(pusher: Pusher, body: bytes) -> None:
    answer = await pusher.http.post(
        "/push", content=body, headers={"Content-Type": "application/msgpack"}
    )
    assert answer.status_code == 400


async def test_a_deep_nest_is_refused_and_never_fatal(pusher: Pusher) -> None:
    for body in (b"[" * 100_000, b'[{"user": "u", "data": ' + b"[" * 100_000):
        assert (await pusher.http.post("/push", content=body)).status_code == 400
    assert await pusher.push([{"user": "nobody", "data": "x"}]) == [NOT_HERE]


async def test_a_thousand_messages_are_taken_and_one_more_is_413(pusher: Pusher) -> None:
    message = {"user": "nobody", "data": "x"}
    assert await pusher.push([message] * 1_000) == [NOT_HERE] * 1_000
    for batch in ([message] * 1_001, [None] * 1_001):
        answer = await pusher.http.post("/push", json=batch)
        assert answer.status_code == 413


@pytest.mark.parametrize("packed", [False, True], ids=["json", "messagepack"])
async def test_ten_thousand_users_are_taken_and_one_more_is_413(
    pusher: Pusher, packed: bool
) -> None:
    users = [f"nobody-{number}" for number in range(10_000)]
    batch: list[dict[str, object]] = [{"user": users, "data": "x"}]
    assert await pusher.push(batch, packed=packed) == [[NOT_HERE] * len(users)]
    batch.append({"user": "nobody", "data": "x"})
    answer = await pusher.http.post(
        "/push",
        content=(msgspec.msgpack if packed else msgspec.json).encode(batch),
        headers={"Content-Type": "application/msgpack" if packed else "application/json"},
    )
    assert answer.status_code == 413


async def test_four_mebibytes_are_taken_and_one_byte_more_is_413(pusher: Pusher) -> None:
    fits = b"[]".ljust(4 * MEBIBYTE)
    assert (await pusher.http.post("/push", content=fits)).json() == {"results": []}
    assert (await pusher.http.post("/push", content=fits + b" ")).status_code == 413


async def test_a_larger_body_is_413_without_a_declared_length_too(pusher: Pusher) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * MEBIBYTE

    def post() -> int:
        with httpx.Client(base_url=pusher.http.base_url, headers=SECRET, trust_env=False) as http:
            return http.post("/push", content=chunks()).status_code

    assert await asyncio.to_thread(post) == 413


async def test_a_declared_length_over_the_limit_is_413_before_the_body_comes(
    gateway: GatewayProcess,
) -> None:
    fields = {**SECRET, "Content-Length": str(10**12)}
    async with wire_to(gateway.internal_port) as wire:
        await wire.send(head("POST", "/push", fields))
        assert (await wire.answer()).status == 413


async def test_a_batch_for_this_node_and_epoch_is_taken(
    pusher: Pusher, gateway: GatewayProcess, registry: RedisRegistry, user: str
) -> None:
    async with connect("ws-plain", gateway.port, user):
        await registry.refresh()
        (nodes,) = await registry.lookup([user])
        assert nodes
        (node,) = nodes
        fields = {"Pushgate-Node": node.name, "Pushgate-Epoch": node.epoch}
        batch = [{"user": user, "data": "x"}]
        answer = await pusher.http.post("/push", json=batch, headers=fields)
        assert answer.json() == {"results": [1]}
        for wrong in ({"Pushgate-Node": "another"}, {"Pushgate-Epoch": "earlier"}):
            for path in ("/push", f"/push/{user}"):
                answer = await pusher.http.post(path, json=batch, headers=fields | wrong)
                assert answer.status_code == 421


async def test_one_body_is_pushed_to_one_user(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    async with connect(transport, gateway.port, user) as client:
        for payload in (b"text", "ünï".encode(), b"", b"\xff\x00", b"x" * 65_536):
            answer = await pusher.http.post(f"/push/{user}", content=payload)
            assert answer.status_code == 200
            message = await client.message()
            assert message.payload == payload
            assert message.binary == (payload == b"\xff\x00")


async def test_one_body_over_the_limit_is_413(pusher: Pusher, user: str) -> None:
    answer = await pusher.http.post(f"/push/{user}", content=b"x" * 65_537)
    assert answer.status_code == 413


async def test_one_body_for_a_user_elsewhere_is_404(pusher: Pusher, user: str) -> None:
    assert (await pusher.http.post(f"/push/{user}", content=b"x")).status_code == 404
    assert (await pusher.http.get(f"/push/{user}")).status_code == 404


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("a/b", "a%2Fb"),
        ("a/b", "a/b"),
        ("/", "%2F"),
        ("..", "%2E%2E"),
        ("a/../b", "a%2F..%2Fb"),
        ("ü 漢", "%C3%BC%20%E6%BC%A2"),
        ("100%", "100%25"),
        ("%2F", "%252F"),
        ("a+b", "a+b"),
        ("a?b#c&d", "a%3Fb%23c%26d"),
        ("x@example.com", "x@example.com"),
    ],
)
async def test_the_user_in_the_path_is_decoded_once(
    gateway: GatewayProcess, pusher: Pusher, name: str, encoded: str
) -> None:
    async with connect("ws-plain", gateway.port, name) as client:
        here = await request(gateway.internal_port, "GET", f"/push/{encoded}", SECRET)
        assert here.status == 200
        fields = {**SECRET, "Content-Length": "2"}
        pushed = await request(
            gateway.internal_port, "POST", f"/push/{encoded}", fields, body=b"hi"
        )
        assert pushed.status == 200
        assert (await client.message()).payload == b"hi"


@pytest.mark.parametrize("encoded", ["%FF", "%00", "a%0Ab", "x" * 257, ""])
async def test_a_path_that_names_no_user_is_refused(gateway: GatewayProcess, encoded: str) -> None:
    answer = await request(gateway.internal_port, "GET", f"/push/{encoded}", SECRET)
    assert answer.status in (400, 404)


async def test_one_body_for_a_client_that_does_not_read_is_503(
    start_gateway: object, user: str
) -> None:
    assert callable(start_gateway)
    small: GatewayProcess = start_gateway(poll_buffer_bytes=4_096)
    async with connect("poll", small.port, user), pusher_to(small.internal_port) as pusher:
        statuses = [
            (await pusher.http.post(f"/push/{user}", content=b"x" * 1_000)).status_code
            for _ in range(6)
        ]
    assert statuses[0] == 200
    assert statuses[-1] == 503


async def test_who_is_here_is_told_with_their_connections(
    gateway: GatewayProcess, pusher: Pusher, registry: RedisRegistry, user: str
) -> None:
    async def users() -> dict[str, int]:
        answer = await pusher.http.get("/connections")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json().keys() == {"node", "epoch", "users"}
        found: dict[str, int] = answer.json()["users"]
        return {name: count for name, count in found.items() if name.startswith(user)}

    other = f'{user} "ü"'
    assert await users() == {}
    async with AsyncExitStack() as stack:
        for transport in ("ws-plain", "sse", "poll"):
            await stack.enter_async_context(connect(transport, gateway.port, user))
        await stack.enter_async_context(connect("ws-v1", gateway.port, other))
        assert await users() == {user: 3, other: 1}
        await registry.refresh()
        found = await registry.lookup([other])
        answer = (await pusher.http.get("/connections")).json()
        assert [[(node.name, node.epoch) for node in nodes or ()] for nodes in found] == [
            [(answer["node"], answer["epoch"])]
        ]
        assert (await pusher.http.delete(f"/connections/{user}")).json() == {"closed": 3}
        assert await users() == {other: 1}


async def listed(pusher: Pusher, user: str) -> list[dict[str, Any]]:
    """Give the connections of a user, as the node lists them."""
    answer = await pusher.http.get(f"/connections/{quote(user, safe='')}")
    assert answer.status_code == 200
    listing = answer.json()
    assert listing.keys() == {"node", "epoch", "user", "total", "connections", "now_ms"}
    assert abs(listing["now_ms"] - time.time() * 1_000) < 10_000  # one machine's clock
    assert (listing["user"], listing["total"]) == (user, len(listing["connections"]))
    connections: list[dict[str, Any]] = listing["connections"]
    return connections


async def test_a_users_connections_are_listed_with_transport_device_state_and_age(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    began_ms = int(time.time() * 1_000)
    other = f"{user}/a b%"
    async with AsyncExitStack() as stack:
        for transport, device in (("ws-v1", "phone"), ("sse", None), ("poll", "tablet")):
            client = connect(transport, gateway.port, user, device=device)
            await stack.enter_async_context(client)
        await stack.enter_async_context(connect("ws-plain", gateway.port, other))
        connections = await listed(pusher, user)
        ways = [(each["transport"], each["device"], each["state"]) for each in connections]
        assert ways == [
            ("websocket", "phone", "open"), ("sse", None, "open"), ("poll", "tablet", "open"),
        ]  # fmt: skip
        for each in connections:
            # The time is that of the node's last tick, a quarter of a second before at most.
            assert began_ms - 1_000 <= each["since_ms"] <= int(time.time() * 1_000)
            assert 0 <= each["age_ms"] < 60_000
        assert len({each["id"] for each in connections}) == 3
        assert [each["transport"] for each in await listed(pusher, other)] == ["websocket"]
    assert await listed(pusher, f"{user}-absent") == []


async def test_one_connection_is_ended_by_its_id_or_told_to_reconnect(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    path = f"/connections/{user}"
    async with (
        connect("ws-v1", gateway.port, user) as staying,
        connect("ws-v1", gateway.port, user, device="phone") as ending,
    ):
        by_device = {each["device"]: each["id"] for each in await listed(pusher, user)}
        refused = await pusher.http.delete(path, params={"code": "1000"})
        assert (refused.status_code, refused.text) == (400, "code is one of 4003, 1001\n")
        ended = await pusher.http.delete(path, params={"id": by_device["phone"]})
        assert ended.json() == {"closed": 1}
        assert (await ending.ended()).code == 4003
        assert [each["id"] for each in await listed(pusher, user)] == [by_device[None]]
        assert (await pusher.http.delete(path, params={"id": "none"})).status_code == 404
        told = await pusher.http.delete(path, params={"code": "1001"})
        assert told.json() == {"closed": 1}
        assert [each["state"] for each in await listed(pusher, user)] == ["parting"]
        assert (await staying.ended()).code == 1001


async def test_metrics_count_connections_and_pushes(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async def value(line_start: str) -> float:
        text = (await pusher.http.get("/metrics")).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line_start in line)

    delivered = 'pushgate_gateway_pushed_total{result="delivered"}'
    held = 'pushgate_gateway_connections{transport="sse"}'
    before = await value(delivered), await value(held)
    async with connect("sse", gateway.port, user):
        await pusher.push_one(user, b"x")
        assert await value(held) == before[1] + 1
        assert await value(delivered) == before[0] + 1
    assert user not in (await pusher.http.get("/metrics")).text
