"""The publishing rules: what a record becomes, and what each broken one is rejected for."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from registry.message import (
    Envelope,
    Push,
    RejectedRecord,
    from_record,
    valid_device,
    valid_id,
    valid_type,
    valid_user,
)

Headers = Iterable[tuple[str, bytes | None]]

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
C1 = "\x85"  # NEXT LINE: a control character of two bytes in UTF-8


def read(headers: Headers = (), **fields: Any) -> Envelope:
    record: dict[str, Any] = {
        "topic": "push",
        "partition": 3,
        "offset": 17,
        "timestamp_ms": 1_000_000,
        "published_ms": 1_000_000,
        "key": b"alice",
        "value": b"hello",
        "headers": headers,
        "max_payload_bytes": 64,
    }
    return from_record(**(record | fields))


def rejection(headers: Headers = (), **fields: Any) -> RejectedRecord:
    with pytest.raises(RejectedRecord) as caught:
        read(headers, **fields)
    return caught.value


def test_a_bare_record_is_a_message_with_its_coordinates_as_id() -> None:
    envelope = read()
    place, ms = "push-3-17", 1_000_000
    assert envelope.push == Push("alice", b"hello", place, None, None, ms, place, ms)
    assert envelope == Envelope(envelope.push, 1_000_000, None, "normal", None)


def test_every_header_is_read() -> None:
    envelope = read(
        [
            ("push-id", b"m-1"),
            ("push-type", b"chat message"),
            ("push-ttl", b"30"),
            ("push-urgency", b"high"),
            ("push-collapse-key", b"chat 1"),
            ("push-device", "téléphone".encode()),
        ]
    )
    assert envelope.push == Push(
        "alice",
        b"hello",
        "m-1",
        "chat message",
        "téléphone",
        position="push-3-17",
        timestamp_ms=1_000_000,
    )
    assert envelope == Envelope(envelope.push, 1_000_000, 30, "high", "chat 1")


@pytest.mark.parametrize("headers", [[], [("push-id", b"m-1")]])
def test_a_record_without_a_timestamp_has_none_for_latencies(headers: Headers) -> None:
    assert read(headers, timestamp_ms=-1).push.timestamp_ms is None


def test_other_headers_are_ignored_whatever_they_hold() -> None:
    assert read([("traceparent", b"\xff"), ("Push-Id", None), ("", b"\x00")]) == read()


def test_a_default_id_is_valid_even_with_kafkas_longest_topic_and_numbers() -> None:
    envelope = read([("push-type", b"t")], topic="t" * 249, partition=2**31 - 1, offset=2**63 - 1)
    assert envelope.push.id.endswith("-9223372036854775807")
    assert valid_id(envelope.push.id)


def test_a_header_that_is_repeated_counts_as_its_last_value() -> None:
    assert read([("push-id", b"first"), ("push-id", b"last")]).push.id == "last"
    assert read([("push-ttl", b"no number"), ("push-ttl", b"1")]).ttl_seconds == 1
    assert rejection([("push-ttl", b"1"), ("push-ttl", b"no number")]).reason == "push-ttl"


def test_a_payload_is_not_interpreted() -> None:
    for payload in (b"", b"\x00\xff\xfe", b"\r\n\r\n", "\u2028\ufeff😀".encode()):
        assert read(value=payload).push.data == payload


def test_a_payload_at_the_limit_passes_and_one_byte_more_is_rejected() -> None:
    assert read(value=b"x" * 64).push.data == b"x" * 64
    error = rejection(value=b"x" * 65)
    assert error.reason == "too-large"
    assert "65" in str(error)
    assert "64" in str(error)


def test_null_is_no_payload() -> None:
    assert rejection(value=None).reason == "value"


@pytest.mark.parametrize(
    "key", [None, b"", b"\xff", b"\xed\xa0\x80", b"a\nb", b"a\x00b", b"\x7f", C1.encode()]
)
def test_a_key_that_is_no_user_id_is_rejected(key: bytes | None) -> None:
    assert rejection(key=key).reason == "key"


@pytest.mark.parametrize("char", ["u", "é", "€", "😀"])
def test_a_user_id_is_measured_in_bytes(char: str) -> None:
    width = len(char.encode())
    longest = char * (256 // width) + "." * (256 % width)
    assert read(key=longest.encode()).push.user == longest
    assert rejection(key=f"{longest}.".encode()).reason == "key"


@pytest.mark.parametrize("name", ["push-id", "push-type", "push-collapse-key", "push-device"])
@pytest.mark.parametrize("char", ["n", "é", "€", "😀"])
def test_a_name_in_a_header_is_measured_in_bytes(name: str, char: str) -> None:
    width = len(char.encode())
    longest = char * (128 // width) + "." * (128 % width)
    read([(name, longest.encode())])
    assert rejection([(name, f"{longest}.".encode())]).reason == name


HEADERS = [
    *("push-id", "push-type", "push-ttl", "push-urgency", "push-collapse-key", "push-device"),
    *("ce_id", "ce_source", "ce_type", "ce_time"),
]


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("raw", [None, b"", b"\xff", b"\xed\xa0\x80", b"a\r\nb", b"\x00"])
def test_a_header_that_breaks_its_rule_is_the_reason(name: str, raw: bytes | None) -> None:
    error = rejection([(name, raw)])
    assert error.reason == name
    assert error.detail


@pytest.mark.parametrize("name", ["push-id", "push-type", "push-collapse-key", "push-device"])
def test_no_control_character_passes_c1_included(name: str) -> None:
    for control in CONTROLS:
        assert rejection([(name, f"a{control}b".encode())]).reason == name


@pytest.mark.parametrize("space", [" ", "\t", "\u00a0", "\u2028", "\u3000"])
def test_an_id_has_no_space_of_any_kind(space: str) -> None:
    assert rejection([("push-id", f"a{space}b".encode())]).reason == "push-id"
    assert rejection([("ce_id", f"{space}".encode())]).reason == "ce_id"


@pytest.mark.parametrize("reserved", ["open", "error", "pushgate.", "pushgate.binary"])
@pytest.mark.parametrize("name", ["push-type", "ce_type"])
def test_a_type_that_clients_reserve_is_rejected(name: str, reserved: str) -> None:
    assert rejection([(name, reserved.encode())]).reason == name


@pytest.mark.parametrize("near", ["Open", "errors", "pushgate", "pushgates.x", "message", " open"])
def test_a_type_that_is_only_near_a_reserved_one_passes(near: str) -> None:
    assert read([("push-type", near.encode())]).push.type == near


@pytest.mark.parametrize("raw", [b"-1", b"1.5", b" 1", b"1 ", b"1s", b"0x1", b"1_0", b"9" * 19])
def test_a_ttl_is_whole_seconds(raw: bytes) -> None:
    assert rejection([("push-ttl", raw)]).reason == "push-ttl"


def test_a_ttl_has_ascii_digits_only() -> None:
    assert rejection([("push-ttl", "٣".encode())]).reason == "push-ttl"


@pytest.mark.parametrize("urgency", ["very-low", "low", "normal", "high"])
def test_an_urgency_is_one_of_four(urgency: str) -> None:
    assert read([("push-urgency", urgency.encode())]).urgency == urgency
    assert rejection([("push-urgency", urgency.upper().encode())]).reason == "push-urgency"


def test_a_message_expires_when_its_ttl_has_passed_and_not_before() -> None:
    envelope = read([("push-ttl", b"30")])
    assert not envelope.expired(1_000_000)
    assert not envelope.expired(1_000_000 + 30_000)
    assert envelope.expired(1_000_000 + 30_001)


def test_a_ttl_of_zero_never_expires_whatever_its_age() -> None:
    assert not read([("push-ttl", b"0")]).expired(1_000_000 + 10**12)


def test_without_a_ttl_a_message_never_expires() -> None:
    assert not read().expired(1_000_000 + 10**12)


def test_the_longest_ttl_never_overflows() -> None:
    assert not read([("push-ttl", b"9" * 18)]).expired(2**62)


def test_a_cloud_event_is_understood() -> None:
    envelope = read(
        [
            ("ce_id", b"A234-1234"),
            ("ce_type", b"com.example.created"),
            ("ce_time", b"1970-01-01T00:16:40.250Z"),
            ("ce_specversion", b"1.0"),
            ("push-ttl", b"1"),
        ]
    )
    assert (envelope.push.id, envelope.push.type) == ("A234-1234", "com.example.created")
    assert envelope.published_ms == 1_000_250
    assert envelope.expired(1_001_251)


@pytest.mark.parametrize(
    "text", ["1970-01-01T02:16:40+02:00", "1970-01-01T00:16:40.000000000Z", "1970-01-01 00:16:40Z"]
)
def test_the_time_of_a_cloud_event_may_be_written_in_many_ways(text: str) -> None:
    assert read([("ce_time", text.encode())], timestamp_ms=5).published_ms == 1_000_000


@pytest.mark.parametrize("text", ["1970-01-01T00:16:40", "1000000", "tomorrow", "1970-13-01T00Z"])
def test_a_time_without_an_offset_is_rejected(text: str) -> None:
    assert rejection([("ce_time", text.encode())]).reason == "ce_time"


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_the_first_and_the_last_time_there_are_do_no_harm(text: str) -> None:
    assert isinstance(read([("ce_time", text.encode())]).published_ms, int)


def identity(headers: Headers = (), **fields: Any) -> tuple[str, str | int | None]:
    push = read(headers, **fields).push
    return push.id, push.id_scope


def test_a_default_id_is_unique_among_records_of_its_timestamp() -> None:
    assert identity() == identity([("push-type", b"t")]) == ("push-3-17", 1_000_000)
    assert identity(timestamp_ms=1_000_001) == ("push-3-17", 1_000_001)


def test_a_record_without_a_timestamp_is_itself_whenever_it_is_read() -> None:
    first = read(timestamp_ms=-1, published_ms=1_000_000)
    again = read(timestamp_ms=-1, published_ms=2_000_000)
    assert first.push == again.push
    assert (first.published_ms, again.published_ms) == (1_000_000, 2_000_000)


def test_an_id_of_the_publisher_is_unique_by_itself() -> None:
    ours = ("push-id", b"1")
    assert identity([ours]) == identity([ours], timestamp_ms=5) == ("1", None)
    assert identity([ours, ("ce_id", b"2"), ("ce_source", b"/shop")]) == ("1", None)


def test_the_id_of_a_cloud_event_is_unique_in_its_source() -> None:
    def event(*source: tuple[str, bytes]) -> tuple[str, str | int | None]:
        return identity([("ce_id", b"1"), *source])

    shop, bank = ("ce_source", b"/shop"), ("ce_source", "/bänk".encode())
    assert event(shop) == event(("ce_source", b"/bank"), shop)
    scopes = {event(*source)[1] for source in ([shop], [bank], [])}
    assert len(scopes) == 3
    assert {event(*source)[0] for source in ([shop], [bank], [])} == {"1"}
    assert identity([shop]) == identity()


def test_a_source_of_any_length_takes_little_in_a_batch() -> None:
    _, scope = identity([("ce_id", b"1"), ("ce_source", b"/" * 100_000)])
    assert len(str(scope)) == 32


def test_our_own_headers_beat_those_of_cloud_events() -> None:
    headers = [("ce_id", b"theirs"), ("push-id", b"ours"), ("ce_type", b"t"), ("push-type", b"o")]
    assert (read(headers).push.id, read(headers).push.type) == ("ours", "o")


def test_a_rejection_says_what_and_is_never_another_exception() -> None:
    error = rejection([("push-urgency", b"asap")])
    assert str(error) == "push-urgency: very-low, low, normal or high"


@pytest.mark.parametrize("rule", [valid_user, valid_id, valid_type, valid_device])
def test_a_lone_surrogate_fits_no_rule(rule: Any) -> None:
    assert rule("ok")
    assert not rule("\ud800")
    assert not rule("")
    for control in CONTROLS:
        assert not rule(f"a{control}")


def test_a_push_survives_the_internal_batch() -> None:
    pushes = [
        Push("u", b"\x00\xff", "id", id_scope=-1),
        Push("é", b"", "id", "type", "device", "scope", "push-0-7", 1_700_000_000_000, "alerts"),
    ]
    packed = msgspec.msgpack.encode(pushes)
    assert msgspec.msgpack.decode(packed, type=list[Push]) == pushes
