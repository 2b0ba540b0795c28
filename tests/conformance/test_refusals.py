"""How the public listener refuses: the answer arrives, and operators see all of them."""

from collections.abc import Callable

import pytest

from tests.conformance.steps import metric
from tests.support.clients import bearer, connect, head, pusher_to, upgrade_headers, wire_to
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
REFUSED = 'pushgate_gateway_refused_total{port="public",reason="full",status="503"}'


@pytest.mark.parametrize("path", ["/ws", "/sse", "/poll"])
@pytest.mark.parametrize("mebibytes", [1, 16])
async def test_a_client_that_goes_on_sending_a_body_reads_the_413(
    gateway: GatewayProcess, user: str, path: str, mebibytes: int
) -> None:
    fields = {**bearer(user), "Content-Length": str(mebibytes * MIB)}
    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", path, fields))
        for _ in range(mebibytes):
            await wire.send(bytes(MIB))
        assert (await wire.answer()).status == 413
        await wire.ended()


async def test_a_body_that_is_there_ends_no_connection(gateway: GatewayProcess, user: str) -> None:
    poll = head("GET", "/poll?wait=0", {**bearer(user), "Content-Length": "5"}) + b"hello"
    async with wire_to(gateway.port) as wire:
        for _ in range(2):
            await wire.send(poll)
            assert (await wire.answer()).status == 413
        await wire.send(head("GET", "/poll?wait=0", bearer(user)))
        assert (await wire.answer()).status == 200


async def test_who_is_refused_for_load_is_counted_whatever_it_is_told(
    start_gateway: Callable[..., GatewayProcess], user: str
) -> None:
    small = start_gateway(max_connections=1)
    event_source = {"Accept": "text/event-stream"}
    asked = [
        ("/sse", {}, 503),
        ("/sse", event_source, 200),
        ("/poll?wait=0", {}, 503),
        ("/ws", upgrade_headers(), 503),
        ("/sse", event_source, 200),
    ]
    async with (
        connect("ws-plain", small.port, user),
        pusher_to(small.internal_port) as pusher,
    ):
        for count, (path, fields, status) in enumerate(asked):
            assert await metric(pusher, REFUSED) == count
            async with wire_to(small.port) as wire:
                await wire.send(head("GET", path, {**bearer(user), **fields}))
                assert (await wire.answer()).status == status
        assert await metric(pusher, REFUSED) == len(asked)
