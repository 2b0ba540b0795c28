"""What is killed, frozen or stale while messages flow, and what its users notice."""

import asyncio
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

from registry.directory import TIMINGS, Node
from registry.redis_store import RedisRegistry, _key
from tests.support.clients import TRANSPORTS, Client, Ended, connect, eventually, pusher_to
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, free_port
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import (
    outcomes,
    publish,
    publish_all,
    take,
    until_last,
    until_outcomes,
    without_repeats,
)
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

DELIVERED: Final = ("delivered", "")
OFFLINE: Final = ("offline", "")


async def node_of(registry: RedisRegistry, gateway: GatewayProcess) -> Node:
    """Give a gateway's node as the registry has it, by a user who connects to it."""
    probe = f"probe-of-{gateway.name}"
    async with connect("ws-plain", gateway.port, probe):
        await registry.refresh()
        (nodes,) = await registry.lookup([probe])
    assert nodes is not None
    (node,) = nodes
    return node


async def refused(gateway: GatewayProcess) -> float:
    """Give how many messages a gateway was given for users it does not have."""
    async with pusher_to(gateway.internal_port) as pusher:
        text = (await pusher.http.get("/metrics")).text
    counter = 'pushgate_gateway_pushed_total{result="not-here"} '
    (count,) = [x.removeprefix(counter) for x in text.splitlines() if x.startswith(counter)]
    return float(count)


async def see_end(client: Client) -> None:
    with pytest.raises((Ended, OSError)):
        await client.message()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_killed_gateways_user_goes_on_at_the_other_and_nobody_else_notices(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    transport: str,
) -> None:
    doomed, steady = start_gateway(), start_gateway()
    start_processor()
    bystander = f"{user}-bystander"
    async with connect(transport, steady.port, bystander) as undisturbed:
        async with connect(transport, doomed.port, user) as client:
            await publish(backend, topic, user, b"before")
            assert (await take(client, 1))[0].payload == b"before"
            await publish_all(backend, topic, bystander, ["1", "2"])
            await asyncio.to_thread(doomed.kill)
            await see_end(client)
        await publish_all(backend, topic, bystander, ["3", "4"])
        async with connect(transport, steady.port, user) as again:
            # The dead node's entry is still there, and its lease too: neither is in the way.
            await publish_all(backend, topic, user, ["after", "later"])
            *earlier, after, _ = [m.payload for m in await until_last(again, b"later")]
            assert after == b"after"
            # Where the kill fell between a write and its answer, nobody knows that it arrived: then
            # it comes once more here, before what was published after it.
            assert earlier in ([], [b"before"])
        got = [m.payload for m in await take(undisturbed, 4)]
        assert got == [b"1", b"2", b"3", b"4"]


async def test_messages_for_an_unreachable_gateway_wait_until_the_user_is_back_elsewhere(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    doomed, other = start_gateway(), start_gateway()
    processor = start_processor()
    async with connect("sse", doomed.port, user):
        await asyncio.to_thread(doomed.kill)
    for number in range(5):
        await publish(backend, topic, user, str(number).encode())

    async def all_wait() -> bool:
        return await measure(processor, 'pushgate_processor_waiting_messages{for="silent"}') == 5

    await eventually(all_wait, "the messages wait", timeout_seconds=10.0)
    async with connect("ws-v1", other.port, user) as client:
        got = [message.payload for message in await take(client, 5)]
        assert got == [b"0", b"1", b"2", b"3", b"4"]
        await publish(backend, topic, user, b"5")
        assert (await take(client, 1))[0].payload == b"5"


async def test_who_is_nowhere_once_a_lost_node_counts_no_more_is_offline(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    doomed = start_gateway(lost_node_seconds=3)
    processor = start_processor(lost_node_seconds=3)
    async with connect("sse", doomed.port, user):
        await asyncio.to_thread(doomed.kill)
    await publish(backend, topic, user, b"x")
    await until_outcomes([processor], {OFFLINE: 1}, timeout=TIMINGS.lease_seconds + 13.0)


async def test_a_gateway_restarted_under_its_name_does_not_answer_for_its_earlier_life(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    registry: RedisRegistry,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    restarted, other = start_gateway(), start_gateway()
    processor = start_processor()
    async with connect("ws-v1", restarted.port, user):
        await publish(backend, topic, user, b"first life")
        await until_outcomes([processor], {DELIVERED: 1})
        before = await node_of(registry, restarted)
        await asyncio.to_thread(restarted.kill)
    await asyncio.to_thread(restarted.start)
    after = await node_of(registry, restarted)
    assert (after.name, after.address) == (before.name, before.address)
    assert after.epoch != before.epoch
    await publish(backend, topic, user, b"nobody has me")
    await until_outcomes([processor], {DELIVERED: 1, OFFLINE: 1})
    async with connect("ws-v1", other.port, user) as client:
        await publish(backend, topic, user, b"elsewhere")
        assert (await take(client, 1))[0].payload == b"elsewhere"
    async with connect("ws-v1", restarted.port, user) as client:
        await publish(backend, topic, user, b"second life")
        # Until the processor's table of nodes is fresh, the earlier life still refuses each message
        # once; the look-up after that may find this new session, and then it comes here as well.
        *repeats, _ = await until_last(client, b"second life")
        assert {message.payload for message in repeats} <= {b"elsewhere"}


async def test_a_stale_entry_of_a_live_node_costs_one_refused_forward(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    registry: RedisRegistry,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    stale, holder = gateways
    wrong = await node_of(registry, stale)
    before = await refused(stale)
    await registry.write(wrong, [user], [])
    await publish(backend, topic, user, b"x")
    await until_outcomes([processor], {OFFLINE: 1})
    assert await refused(stale) == before + 1

    async with connect("ws-v1", holder.port, user) as client:
        await publish(backend, topic, user, b"y")
        assert (await take(client, 1))[0].payload == b"y"
        await until_outcomes([processor], {OFFLINE: 1, DELIVERED: 1})
        assert await refused(stale) == before + 2
    await registry.write(wrong, [], [user])


@pytest.mark.parametrize("leased", [False, True])
async def test_an_entry_of_a_dead_node_keeps_nobody_from_the_live_one(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    registry: RedisRegistry,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    leased: bool,
) -> None:
    processor = start_processor()
    dead = Node(f"dead-{free_port()}", "epoch", f"127.0.0.1:{free_port()}")
    if leased:
        await registry.heartbeat(dead, claim=True)
    await registry.write(dead, [user], [])
    await publish(backend, topic, user, b"x")
    if not leased:
        await until_outcomes([processor], {OFFLINE: 1})
    async with connect("sse", gateways[0].port, user) as client:
        await publish(backend, topic, user, b"y")
        got = [message.payload for message in await take(client, 2 if leased else 1)]
        assert got == ([b"x", b"y"] if leased else [b"y"])
        await registry.retire(dead)
        await until_outcomes([processor], {DELIVERED: 2} if leased else {OFFLINE: 1, DELIVERED: 1})


@pytest.mark.parametrize(
    "entry",
    [
        b"http://127.0.0.1/:e:9999999999",
        b"a b c",
        b"\r\n\r\n",
        b"\xff" * 100,
        b"x" * 1_000_000,
        b"",
    ],
    ids=["url", "words", "crlf", "binary", "megabyte", "empty"],
)
async def test_a_poisoned_entry_is_nobody_and_stops_nothing(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    own_valkey: RedisServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    entry: bytes,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    processor = start_processor(redis_url=own_valkey.url)
    async with Redis.from_url(own_valkey.url) as store:
        await store.set(_key(user), entry)
    await publish(backend, topic, user, b"x")
    await until_outcomes([processor], {OFFLINE: 1})
    async with connect("ws-v1", gateway.port, user) as client:
        await publish(backend, topic, user, b"y")
        assert (await take(client, 1))[0].payload == b"y"


async def test_a_killed_processor_loses_nothing_and_repeats_with_the_same_id(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    doomed = start_processor(batch_messages=20)
    start_processor(batch_messages=20)
    users = [f"{user}-{number}" for number in range(4)]
    texts = [str(number) for number in range(1_000)]
    async with (
        connect("ws-v1", gateways[0].port, users[0]) as a,
        connect("sse", gateways[1].port, users[1]) as b,
        connect("poll", gateways[0].port, users[2]) as c,
        connect("ws-v1", gateways[1].port, users[3]) as d,
    ):
        publishing = asyncio.gather(
            *(publish_all(backend, topic, name, [*texts, "last"]) for name in users)
        )
        early = await take(a, 100)
        await asyncio.to_thread(doomed.kill)
        await publishing
        rest = await asyncio.gather(*(until_last(client, b"last") for client in (a, b, c, d)))
        for got in ([*early, *rest[0]], *rest[1:]):
            arrived = [message.payload.decode() for message in without_repeats(got)]
            assert arrived == [*texts, "last"]


async def test_a_frozen_redis_drops_nobody_and_calls_nobody_offline(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    own_valkey: RedisServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    processor = start_processor(redis_url=own_valkey.url)
    users = [f"{user}-{transport}" for transport in TRANSPORTS]
    async with (
        connect(TRANSPORTS[0], gateway.port, users[0]) as a,
        connect(TRANSPORTS[1], gateway.port, users[1]) as b,
        connect(TRANSPORTS[2], gateway.port, users[2]) as c,
        connect(TRANSPORTS[3], gateway.port, users[3]) as d,
    ):
        clients = (a, b, c, d)
        own_valkey.freeze()
        thaw = asyncio.get_running_loop().call_later(3.0, own_valkey.thaw)
        try:
            for name in users:
                await publish_all(backend, topic, name, ["1", "2", "3"])
            # A client that comes now is let in all the same, after a second.
            async with connect("ws-v1", gateway.port, f"{user}-newcomer") as newcomer:
                assert gateway.readyz() == 200
                assert processor.readyz() == 200
                async with pusher_to(gateway.internal_port) as pusher:
                    await pusher.push_one(f"{user}-newcomer", b"here already")
                assert (await newcomer.message()).payload == b"here already"
                for client in clients:
                    assert [m.payload for m in await take(client, 3)] == [b"1", b"2", b"3"]
                await publish(backend, topic, f"{user}-newcomer", b"known by now")
                assert (await newcomer.message()).payload == b"known by now"
        finally:
            thaw.cancel()
            own_valkey.thaw()
    await until_outcomes([processor], {DELIVERED: 13})


async def test_a_redis_that_comes_back_empty_has_everyone_again(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    own_valkey: RedisServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    start_processor(redis_url=own_valkey.url)
    registry = RedisRegistry(own_valkey.url)
    async with connect("ws-v1", gateway.port, user) as client:
        await asyncio.to_thread(own_valkey.restart)

        async def registered() -> bool:
            await registry.refresh()
            return bool((await registry.lookup([user]))[0])

        await eventually(registered, "the user is registered again", timeout_seconds=9.0)
        await publish(backend, topic, user, b"again")
        assert (await client.message()).payload == b"again"
    await registry.close()


async def test_a_frozen_gateway_delays_others_by_one_timeout_and_evicts_no_newer_session(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    frozen, steady = start_gateway(), start_gateway()
    processor = start_processor()
    async with connect("ws-v1", frozen.port, user) as older:
        frozen.freeze()
        async with connect("ws-v1", steady.port, user) as newer:
            await publish(backend, topic, user, b"x")
            assert (await newer.message(timeout=4.0)).payload == b"x"
            assert await outcomes(processor) == {}, "the frozen gateway may have its part to say"
            frozen.thaw()
            await until_outcomes([processor], {DELIVERED: 1})
            await older.wire.close()
            await publish(backend, topic, user, b"y")
            assert (await newer.message()).payload == b"y"


async def test_a_gateway_leaves_in_time_though_redis_is_gone(
    own_valkey: RedisServer, start_gateway: StartGateway, user: str
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    async with connect("poll", gateway.port, user), connect("ws-plain", gateway.port, user):
        own_valkey.stop()
        assert await asyncio.to_thread(gateway.terminate, 10.0) == 0
