"""Clients that come back, over whatever Hypothesis draws; `make drill-resumes` runs for longer."""

from __future__ import annotations

from collections import Counter

from tests.drill.cluster import cluster_on
from tests.drill.resumes import run_from
from tests.support.kafka import KafkaServer

#: The first is the shortest run of all; the others take some 20 s each.
EXAMPLES = 5
#: The same steps at every run of the suite; `make drill-resumes` draws its seeds anew.
SEED = 21


def test_each_message_comes_once_and_in_order_whatever_fails(real_kafka: KafkaServer) -> None:
    counts: Counter[str] = Counter()
    with cluster_on(real_kafka) as cluster:
        run_from(SEED, cluster, counts, examples=EXAMPLES)
    assert counts["publishes"], "messages were published"
