"""The drill's rows 1, 4 and 10, small and short: nothing lost, nothing told wrongly.

`make drill` runs all rows at their full size and length, and also looks at times and memory, which
depend on what else the machine does.
"""

import pytest

from tests.drill.faults import Lengths
from tests.drill.rows import ROWS, Row, run
from tests.drill.stage import Plan
from tests.support.kafka import KafkaServer

pytestmark = pytest.mark.anyio

SHORT = Lengths(baseline=2.0, frozen=5.0, partition=5.0, aftermath=2.0)
IN_SHORT = ("1", "4", "10-processor")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in IN_SHORT], ids=lambda r: r.name)
async def test_a_fault_under_load_loses_nothing_and_tells_nothing_wrongly(
    real_kafka: KafkaServer, row: Row
) -> None:
    plan = Plan(
        clients=150,
        rate=100.0,
        lost_node_seconds=5,
        heartbeat_seconds=row.heartbeat_seconds,
        hops=row.hops,
    )
    result = await run(row, plan, SHORT, real_kafka.bootstrap, timed=False)
    assert not result.broken
