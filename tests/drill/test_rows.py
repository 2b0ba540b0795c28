"""The drill's rows 1, 4 and 10, and 2, 3, 5 and 8 for clients that resume: small and short.

`make drill` runs all rows at their full size and length, and also looks at times and memory, which
depend on what else the machine does.
"""

from collections import Counter
from functools import partial

import pytest

from tests.drill import faults
from tests.drill.accounts import User
from tests.drill.crowd import payload
from tests.drill.faults import Fault, Lengths
from tests.drill.rows import ROWS, Row, run
from tests.drill.stage import Plan, Stage, staged
from tests.support.clients import eventually
from tests.support.kafka import KafkaServer
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

#: A gateway is frozen for longer than a client waits for a handshake (5 s), and not for twice that:
#: else clients give up in the very moment in which the gateway answers them, and what is delivered
#: in that moment only a resume brings back.
SHORT = Lengths(baseline=2.0, killed=17.0, frozen=8.0, partition=5.0, aftermath=1.0)
IN_SHORT = ("1", "4", "10-processor")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in IN_SHORT], ids=lambda r: r.name)
async def test_a_fault_under_load_loses_nothing_and_tells_nothing_wrongly(
    real_kafka: KafkaServer, row: Row
) -> None:
    plan = row.plan(150, 100.0, lost_node_seconds=5)
    result = await run(row, plan, SHORT, real_kafka.bootstrap, timed=False)
    assert not result.broken


ONCE = Lengths(baseline=5.0, kills=1, between_kills=8.0, killed=1.0, partition=5.0, aftermath=1.0)
RESUMING = ("ws-v1", "sse", "poll", "poll-roaming")


async def one_after_the_other(stage: Stage, lengths: Lengths) -> Fault:
    """Kill a gateway, drain all, kill a processor, freeze Redis, under users who move."""
    wrong: Counter[str] = Counter()
    for strike in (
        faults.kill_often,
        faults.drain_all,
        faults.kill_processors,
        faults.freeze_redis_under_movers,
    ):
        fault = await strike(stage, lengths)
        wrong += fault.wrong
    fault.wrong = wrong
    return fault


async def test_clients_that_resume_get_everything_once_and_in_order(
    real_kafka: KafkaServer,
) -> None:
    row = Row(
        name="all",
        title="one fault after the other",
        strike=one_after_the_other,
        drain_seconds=2,
        tells_twice=True,
    )
    plan = row.plan(150, 100.0, mix=RESUMING, gateways=2, lost_node_seconds=5)
    result = await run(row, plan, ONCE, real_kafka.bootstrap, timed=False)
    assert not result.broken
    assert result.findings.ended_sessions > 150  # of the killed gateway and both that drained


async def test_what_goes_wrong_with_a_cursor_is_found_from_end_to_end(
    real_kafka: KafkaServer,
) -> None:
    """The control: clients that throw their cursor away, come with an old one, or one of nobody."""
    plan = Plan(clients=20, gateways=2, lost_node_seconds=5, mix=("sse",), latecomers=1)
    async with staged(plan, real_kafka.bootstrap) as stage:
        # A registry that has just begun says of nobody that they are not there.
        await stage.send(stage.crowd.latecomers[0])
        await eventually(partial(_is_told_offline, stage), "told", timeout_seconds=20.0)
        honest, forgetful, rewound, hopeless = stage.users[1:5]  # of one client each
        moving = [honest, forgetful, rewound, hopeless]
        early = stage.crowd.cursor(rewound)
        await _each_gets_a_message(stage, moving)
        stage.crowd.forge(forgetful, None)
        stage.crowd.forge(rewound, early)
        stage.crowd.forge(hopeless, "0")
        stage.crowd.move(moving)
        for user in moving:
            await stage.send(user)
        await eventually(
            lambda: all(user.clients[0].sessions[1:] for user in moving),
            "all are back",
            timeout_seconds=10.0,
        )
        await _each_gets_a_message(stage, moving)
        findings = await stage.settle(timeout_seconds=5.0)
    assert [text.partition(" ")[0] for text in findings.examples["lost"]] == [f"{forgetful.name}.1"]
    assert findings.lost == findings.repeated == findings.gaps == findings.behind_gaps == 1
    assert findings.examples["gaps told"][0].startswith(hopeless.name)
    assert not findings.disordered


async def _is_told_offline(stage: Stage) -> bool:
    name = 'pushgate_processor_outcomes_total{outcome="offline"'
    return any([await measure(processor, name) for processor in stage.processors])


async def _each_gets_a_message(stage: Stage, users: list[User]) -> None:
    for user in users:
        await stage.send(user)
    await eventually(
        lambda: all(user.clients[0].newest == len(user.published) - 1 for user in users),
        "each has its message",
        timeout_seconds=10.0,
    )


async def test_what_goes_wrong_is_found_from_end_to_end(real_kafka: KafkaServer) -> None:
    """The control: without it, a drill that sees nothing would pass."""
    plan = Plan(clients=20, gateways=2, lost_node_seconds=5, latecomers=1)
    async with staged(plan, real_kafka.bootstrap) as stage:
        dropped, repeated, swapped, altered, kicked = stage.users[1:6]  # of one client each
        (late,) = stage.crowd.latecomers
        for user in stage.users:
            await stage.send(user)
        await stage.send(dropped, headers={"push-device": "nobody's"})
        await stage.send(repeated, payload(repeated.name, 0))
        for number in (2, 1):
            await stage.send(swapped, payload(swapped.name, number))
        await stage.send(altered, payload(swapped.name, 1))
        (client,) = kicked.clients
        await eventually(lambda: client.arrivals, "its message is there", timeout_seconds=10.0)
        await stage.kick(kicked)
        await eventually(lambda: client.sessions[1:], "back", timeout_seconds=10.0)
        findings = await stage.settle(timeout_seconds=5.0)
    assert findings.examples["lost"] == [
        f"{dropped.name}.1 (offline)",
        f"{repeated.name}.1 (delivered)",
        f"{altered.name}.1 (delivered)",
    ]
    assert findings.told_wrongly == {
        "offline": 1,
        "delivered to nobody": 2,
        "to another user, or altered": 1,
    }
    assert findings.repeated == 1
    assert findings.examples["out of order"] == [f"{swapped.name}.1"]
    assert findings.examples["connections that ended"] == [f"{kicked.name} at None"]
    assert findings.never_back == 1  # the latecomer was not let in
    assert late.told[0][0].kind == "offline"
