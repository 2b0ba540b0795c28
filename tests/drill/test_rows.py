"""The drill's rows 1, 4 and 10, small and short: nothing lost, nothing told wrongly.

`make drill` runs all rows at their full size and length, and also looks at times and memory, which
depend on what else the machine does.
"""

import pytest

from tests.drill.crowd import payload
from tests.drill.faults import Lengths
from tests.drill.rows import ROWS, Row, run
from tests.drill.stage import Plan, staged
from tests.support.clients import eventually
from tests.support.kafka import KafkaServer

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
