"""Gateways, Redis, Kafka, processors and the network between them fail while messages flow.

Everybody reads all the time, on every transport, and whoever is dropped fails the test at once. A
ledger finds what is missing, repeated or out of order. That it does is shown with a message of each
kind in tests/unit/support/test_ledger.py, and from end to end by the first test here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from registry.redis_store import RedisRegistry
from tests.support.clients import connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.ledger import Ledger
from tests.support.processes import GatewayProcess, PushgateProcess
from tests.support.proxy import Direction, KafkaProxy, Proxy
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish, take, until_outcomes
from tests.system.traffic import (
    Publisher,
    measure,
    reading,
    seats,
    told,
    until_all_arrived,
    users,
)

pytestmark = pytest.mark.anyio

CLIENTS: Final = 20
#: How long what fails does.
FAULT_SECONDS: Final = 10.0
FROZEN_GATEWAY_SECONDS: Final = 15.0
#: What each user gets at once before a processor is killed, so that it has something in hand.
BURST_ROUNDS: Final = 5
#: For a busy machine, on top of what must be kept.
SLACK_SECONDS: Final = 2.0
#: A gateway's heartbeat to the registry, and five seconds.
REGISTRATION_SECONDS: Final = 7.0
DELIVERED: Final = ("delivered", "")


@pytest.fixture
async def own_registry(own_valkey: RedisServer) -> AsyncIterator[RedisRegistry]:
    """Give the test's own registry as a processor sees it."""
    store = RedisRegistry(own_valkey.url)
    yield store
    await store.close()


async def fault_lasts(seconds: float) -> None:
    """Return after so long: it is the fault's own length, and nothing else is awaited."""
    await asyncio.sleep(seconds)


async def until_reached(
    publisher: Publisher, ledger: Ledger, to: list[str], *, timeout_seconds: float
) -> None:
    """Publish until each of them has got something that was published from now on."""
    now = time.monotonic()
    async with publisher.steadily(to):
        await eventually(
            lambda: ledger.reached(to, since=now), "reached", timeout_seconds=timeout_seconds
        )


async def check_told_delivered(kafka: KafkaServer, topic: str, ledger: Ledger) -> None:
    """Fail unless every message has the outcome `delivered`, and no other."""
    outcomes = await told(kafka, topic, ledger)
    assert {name: kinds for name, kinds in outcomes.items() if kinds != {"delivered"}} == {}


async def test_what_is_dropped_repeated_or_swapped_is_found_from_end_to_end(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    start_processor()
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    seated = seats(user, gateways, 4)
    dropped, repeated, swapped, _ = users(seated)
    async with reading(ledger, seated):
        nobodys = {"push-device": "nobody's"}
        ledger.publish(dropped, "dropped")
        await publish(backend, topic, dropped, b"dropped", nobodys)
        ledger.publish(repeated, "twice")
        await publish(backend, topic, repeated, b"twice", {"push-id": "once"})
        await publish(backend, topic, repeated, b"twice", {"push-id": "again"})
        for name in ("first", "second"):
            ledger.publish(swapped, name)
        for payload in (b"second", b"first"):
            await publish(backend, topic, swapped, payload)
        await publisher.to_each(users(seated))
        await eventually(lambda: len(ledger.missing()) == 1, "all but one arrive")
        with pytest.raises(AssertionError) as wrong:
            ledger.check()
    assert ledger.missing() == ["dropped"]
    assert ledger.repeated() == ["twice"]
    assert ledger.disordered() == ["first"]
    for found in ("1 missing", "1 repeated", "1 out of order"):
        assert found in str(wrong.value)


async def test_a_frozen_gateway_costs_its_own_users_alone_and_evicts_no_newer_session(
    kafka: KafkaServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    registry: RedisRegistry,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    frozen, steady = start_gateway(), start_gateway()
    processor = start_processor(outcomes_topic=f"{topic}.outcomes")
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    seated = seats(user, [frozen, steady], 8)
    there = users(seat for seat in seated if seat.gateway is frozen)
    elsewhere = users(seat for seat in seated if seat.gateway is steady)
    mover = f"{user}-mover"
    async with reading(ledger, seated), connect("ws-v1", frozen.port, mover) as older:
        await publisher.to_each(users(seated))
        await until_all_arrived(ledger, timeout_seconds=10.0)
        frozen.freeze()
        async with connect("ws-v1", steady.port, mover) as newer:
            async with publisher.steadily(users(seated)):
                await fault_lasts(FROZEN_GATEWAY_SECONDS)
            frozen.thaw()
            await older.wire.close()
            await until_reached(publisher, ledger, there, timeout_seconds=10.0)
            for number in range(3):
                payload = f"to the newer session, {number}".encode()
                await publish(backend, topic, mover, payload)
                assert (await take(newer, 1))[0].payload == payload
            await registry.refresh()
            (nodes,) = await registry.lookup([mover])
            assert [node.name for node in nodes or ()] == [steady.name]
        await until_all_arrived(ledger, timeout_seconds=SLACK_SECONDS)
        await check_told_delivered(kafka, f"{topic}.outcomes", ledger)
    ledger.check()
    assert ledger.slowest(elsewhere) < SLACK_SECONDS
    in_time = await measure(processor, 'pushgate_processor_forward_seconds_bucket{le="2.5"}')
    assert in_time == await measure(processor, "pushgate_processor_forward_seconds_count")


async def without_registry(processes: Sequence[PushgateProcess]) -> float:
    """Give how many gateways have no registry, and how many processors are in doubt of it."""
    names = ("pushgate_gateway_registry_out_of_order ", "pushgate_processor_registry_in_doubt ")
    return sum([await measure(process, name) for process in processes for name in names])


async def test_a_frozen_redis_costs_nobody_a_message_or_a_connection(
    own_valkey: RedisServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateways = [start_gateway(redis_url=own_valkey.url) for _ in range(2)]
    processor = start_processor(redis_url=own_valkey.url)
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    seated = seats(user, gateways, CLIENTS)
    known = users(seated)[: CLIENTS // 2]  # the others get their first message in the outage

    async def registry_is_back() -> bool:
        return await without_registry([*gateways, processor]) == 0

    async with reading(ledger, seated):
        await publisher.to_each(known)
        await until_all_arrived(ledger, timeout_seconds=10.0)
        own_valkey.freeze()
        async with publisher.steadily(users(seated)):
            await fault_lasts(FAULT_SECONDS)
            assert await without_registry([*gateways, processor]) == 3
        own_valkey.thaw()
        await until_all_arrived(ledger, timeout_seconds=2.0 + SLACK_SECONDS)
        await until_outcomes([processor], {DELIVERED: len(ledger.names())})
        await eventually(
            registry_is_back,
            "metrics tell that Redis is back",
            timeout_seconds=REGISTRATION_SECONDS + SLACK_SECONDS,
        )
    ledger.check()
    assert ledger.slowest(known) < FAULT_SECONDS / 2, "who was found lately is found in the outage"


async def test_a_redis_that_comes_back_empty_costs_nobody_a_message_or_a_connection(
    own_valkey: RedisServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    own_registry: RedisRegistry,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateways = [start_gateway(redis_url=own_valkey.url) for _ in range(2)]
    processor = start_processor(redis_url=own_valkey.url)
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    seated = seats(user, gateways, CLIENTS)
    names = {seat.user: seat.gateway.name for seat in seated}

    async def all_registered() -> bool:
        await own_registry.refresh()
        found = await own_registry.lookup(list(names))
        expected = [[name] for name in names.values()]
        return [[node.name for node in nodes or ()] for nodes in found] == expected

    async with reading(ledger, seated):
        await publisher.to_each(users(seated)[: CLIENTS // 2])
        await until_all_arrived(ledger, timeout_seconds=10.0)
        async with publisher.steadily(users(seated)):
            own_valkey.restart()  # so soon that gateways notice with their next heartbeat
            await eventually(
                all_registered,
                "all are registered again",
                timeout_seconds=REGISTRATION_SECONDS + SLACK_SECONDS,
            )
        await until_all_arrived(ledger, timeout_seconds=REGISTRATION_SECONDS + SLACK_SECONDS)
        await until_outcomes([processor], {DELIVERED: len(ledger.names())})
    ledger.check()
    for gateway in gateways:
        assert await measure(gateway, "pushgate_gateway_registry_reasserted_total ") >= 1


async def test_a_frozen_kafka_and_its_reset_connections_cost_nobody_a_message_or_a_connection(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    seated = seats(user, gateways, CLIENTS)
    async with KafkaProxy(real_kafka.bootstrap) as proxy:
        start = partial(start_processor, kafka_bootstrap=proxy.address)
        processor = await asyncio.to_thread(start)
        async with reading(ledger, seated):
            async with publisher.steadily(users(seated)):
                await eventually(lambda: ledger.reached(users(seated), since=0.0), "it flows")
                real_kafka.freeze()
                try:
                    await fault_lasts(FAULT_SECONDS / 2)
                    proxy.reset()
                    await fault_lasts(FAULT_SECONDS / 2)
                finally:
                    real_kafka.thaw()
                proxy.reset()
            await until_all_arrived(ledger, timeout_seconds=15.0)

            async def no_lag() -> bool:
                return await measure(processor, "pushgate_processor_lag_messages{") == 0

            await eventually(no_lag, "no lag")
        await asyncio.to_thread(processor.terminate)
    ledger.check()


@pytest.mark.parametrize("known_again", [True, False])
async def test_a_processor_killed_before_its_commit_loses_nothing_and_nobody_sees_a_repeat(
    real_kafka: KafkaServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    known_again: bool,
) -> None:
    """The control: a gateway that does not know repeats again shows them to the ledger."""
    settings = {} if known_again else {"repeat_window_messages": 0}
    gateways = [start_gateway(**settings) for _ in range(2)]
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    seated = seats(user, gateways, CLIENTS)
    async with KafkaProxy(real_kafka.bootstrap) as proxy:
        start = partial(start_processor, kafka_bootstrap=proxy.address)
        doomed = await asyncio.to_thread(start)
        async with reading(ledger, seated):
            async with publisher.steadily(users(seated)):
                await eventually(lambda: ledger.reached(users(seated), since=0.0), "it flows")
                proxy.hold_commits()
                held = time.monotonic()
                await eventually(
                    lambda: proxy.held_commits and ledger.reached(users(seated), since=held),
                    "messages are delivered and their commit is under way",
                )
                await asyncio.to_thread(doomed.kill)
                proxy.reset()
                proxy.let_through()
                heir = await asyncio.to_thread(start)
            await until_all_arrived(ledger, timeout_seconds=20.0)
            await asyncio.to_thread(heir.terminate)
    repeats = [await measure(each, "pushgate_gateway_repeats_total ") for each in gateways]
    if known_again:
        ledger.check()
        assert min(repeats) > 0
    else:
        with pytest.raises(AssertionError, match="repeated"):
            ledger.check()
        assert not ledger.missing()
        assert repeats == [0, 0]


async def test_processors_that_come_and_go_and_are_killed_lose_nothing_and_keep_the_order(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    members = [start_processor() for _ in range(3)]
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    seated = seats(user, gateways, CLIENTS)

    async def join() -> None:
        members.append(await asyncio.to_thread(start_processor))

    async def leave() -> None:
        await asyncio.to_thread(members.pop(0).terminate)

    async def die() -> None:
        frozen, steady = gateways
        now = time.monotonic()
        frozen.freeze()  # for less than a forward's time-out: its messages stay in hand
        await publisher.to_each(users(seated) * BURST_ROUNDS)
        there = users(seat for seat in seated if seat.gateway is steady)
        await eventually(lambda: ledger.reached(there, since=now), "the others' are delivered")
        await fault_lasts(0.5)
        members.pop(0).kill()
        frozen.thaw()

    async with reading(ledger, seated):
        async with publisher.steadily(users(seated)):
            for change in (leave, join, die, join, leave, join):
                await asyncio.gather(change(), fault_lasts(5.0))
        await until_all_arrived(ledger, timeout_seconds=15.0)
    ledger.check()
    assert ledger.slowest(users(seated)) < 10.0


async def published_until_known(
    registry: RedisRegistry, ledger: Ledger, newcomers: list[str], *, timeout_seconds: float
) -> set[str]:
    """Return what was published to these users before the registry had each of them."""
    unknown = set(newcomers)
    early: set[str] = set()

    async def all_known() -> bool:
        asked = sorted(unknown)
        await registry.refresh()
        for user, nodes in zip(asked, await registry.lookup(asked), strict=True):
            if nodes:
                early.update(name for name in ledger.names() if name.startswith(f"{user}."))
                unknown.discard(user)
        return not unknown

    await eventually(all_known, "all are in the registry", timeout_seconds=timeout_seconds)
    return early


async def test_a_partition_between_gateways_and_redis_either_way_costs_nobody_anything(
    kafka: KafkaServer,
    valkey: RedisServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    registry: RedisRegistry,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    """Nor newcomers, whom their gateways can't register for seconds."""
    ledger, newcomers_ledger = Ledger(), Ledger()
    publisher = Publisher(backend, topic, ledger)
    publisher_to_newcomers = Publisher(backend, topic, newcomers_ledger)
    start_processor(outcomes_topic=f"{topic}.outcomes")
    async with Proxy(valkey.port) as unheard, Proxy(valkey.port) as unanswered:
        urls = [f"redis://{proxy.address}/0" for proxy in (unheard, unanswered)]
        gateways = [
            await asyncio.to_thread(partial(start_gateway, redis_url=redis_url))
            for redis_url in urls
        ]
        seated = seats(user, gateways, CLIENTS)
        newcomers = seats(f"{user}-newcomer", gateways, 4)
        async with reading(ledger, seated):
            await publisher.to_each(users(seated))
            await until_all_arrived(ledger, timeout_seconds=10.0)
            unheard.silence(Direction.TO_SERVER)
            unanswered.silence(Direction.TO_CLIENT)
            async with publisher.steadily(users(seated)):
                await fault_lasts(FAULT_SECONDS / 2)
                async with reading(newcomers_ledger, newcomers):
                    async with publisher_to_newcomers.steadily(users(newcomers)):
                        await fault_lasts(FAULT_SECONDS / 2)
                        unheard.release()
                        unanswered.release()
                        early = await published_until_known(
                            registry,
                            newcomers_ledger,
                            users(newcomers),
                            timeout_seconds=5.0 + SLACK_SECONDS,
                        )
                        await fault_lasts(SLACK_SECONDS)
                    await until_all_arrived(newcomers_ledger, timeout_seconds=SLACK_SECONDS)
            await until_all_arrived(ledger, timeout_seconds=SLACK_SECONDS)
        for gateway in gateways:
            await asyncio.to_thread(gateway.terminate)
    ledger.check()
    await check_told_delivered(kafka, f"{topic}.outcomes", ledger)
    newcomers_ledger.check()
    told_newcomers = await told(kafka, f"{topic}.outcomes", newcomers_ledger)
    assert set().union(*told_newcomers.values()) <= {"delivered", "offline"}
    # What nobody could look up was offline, and is replayed.
    assert {name for name, kinds in told_newcomers.items() if kinds != {"delivered"}} <= early
    assert ledger.slowest(users(seated)) < SLACK_SECONDS


async def test_a_partition_between_processor_and_gateways_either_way_costs_others_nothing(
    kafka: KafkaServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    ledger = Ledger()
    publisher = Publisher(backend, topic, ledger)
    start_processor(outcomes_topic=f"{topic}.outcomes")
    steady = start_gateway()
    async with Proxy() as unheard, Proxy() as unanswered:
        parted = []
        for proxy in (unheard, unanswered):
            parted.append(start_gateway(advertise_address=proxy.address))
            proxy.target_port = parted[-1].internal_port
        seated = seats(user, [steady, *parted], CLIENTS)
        there = users(seat for seat in seated if seat.gateway in parted)
        elsewhere = users(seat for seat in seated if seat.gateway is steady)
        async with reading(ledger, seated):
            await publisher.to_each(users(seated))
            await until_all_arrived(ledger, timeout_seconds=10.0)
            unheard.silence(Direction.TO_SERVER)
            unanswered.silence(Direction.TO_CLIENT)
            async with publisher.steadily(users(seated)):
                await fault_lasts(FAULT_SECONDS)
                unheard.release()
                unanswered.release()
                await until_reached(publisher, ledger, there, timeout_seconds=5.0 + SLACK_SECONDS)
            await until_all_arrived(ledger, timeout_seconds=SLACK_SECONDS)
            await check_told_delivered(kafka, f"{topic}.outcomes", ledger)
    ledger.check()
    assert ledger.slowest(elsewhere) < SLACK_SECONDS
