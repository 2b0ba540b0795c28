"""Recent records: their partitions by murmur2, and their times."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from processor.reading.kafka import Record, partition_of
from pushgate.doctor.finding import Severity
from pushgate.doctor.records import judge_partitions, judge_times
from tests.support.findings import bad, only

KEYS: Final = [f"user-{number}".encode() for number in range(20)]
COUNTS: Final = {"push": 4}
NOW: Final = 1_700_000_000.0


def record(
    key: bytes | None, partition: int, *, at: float = NOW - 1, timestamp_type: int = 0
) -> Record:
    return Record(
        topic="push", partition=partition, offset=7, timestamp=int(at * 1_000),
        timestamp_type=timestamp_type, key=key, value=b"", checksum=None, serialized_key_size=0,
        serialized_value_size=0, headers=(),
    )  # fmt: skip


def test_records_in_the_partitions_of_their_keys_are_well() -> None:
    found = judge_partitions([record(key, partition_of(key, 4)) for key in KEYS], COUNTS)
    assert bad(found) == []
    assert "20 recent records" in found[0].what


def test_another_partitioner_is_found_and_librdkafkas_is_named() -> None:
    finding = only(judge_partitions([record(key, crc32(key) % 4) for key in KEYS], COUNTS))
    assert "of 20 recent records are not in the partition" in finding.what
    assert "crc32" in finding.what
    assert "murmur2_random" in finding.cure
    shifted = [record(key, (partition_of(key, 4) + 1) % 4) for key in KEYS]
    assert "crc32" not in only(judge_partitions(shifted, COUNTS)).what


def test_records_without_a_key_are_found() -> None:
    finding = only(judge_partitions([record(None, 0), record(b"a", partition_of(b"a", 4))], COUNTS))
    assert "1 of 2 recent records have no key" in finding.what


def test_without_records_the_partitioner_is_unknown() -> None:
    (finding,) = judge_partitions([], COUNTS)
    assert finding.severity is Severity.NOTE


def test_a_record_of_the_future_tells_of_a_producers_clock_or_of_kafkas() -> None:
    past = [record(b"a", 0, at=NOW - 7_200)]
    assert judge_times([], now=NOW) == judge_times(past, now=NOW) == []
    of_producer = only(judge_times([*past, record(b"a", 0, at=NOW + 60)], now=NOW))
    assert "a producer" in of_producer.what
    assert "60.000 s ahead" in of_producer.what
    of_kafka = only(judge_times([record(b"a", 0, at=NOW + 60, timestamp_type=1)], now=NOW))
    assert "Kafka" in of_kafka.what
