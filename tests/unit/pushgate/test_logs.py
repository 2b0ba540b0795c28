"""What log lines say, and what they must not say."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from pushgate import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave logging as it was."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.configure(**before)


@pytest.mark.parametrize("as_json", [True, False])
def test_an_exception_is_told_without_what_its_variables_held(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(as_json=as_json)

    def fail(secret: str) -> None:
        kept = secret.upper()
        raise RuntimeError(f"after {len(kept)} characters")

    try:
        fail("marker")
    except RuntimeError:
        structlog.get_logger("gateway").exception("it failed")
        logging.getLogger("uvicorn").exception("it failed too")
    told = capsys.readouterr().err
    assert told.count("RuntimeError: after 6 characters") == 2
    assert "marker" not in told.lower().replace('fail("marker")', "").replace('\\"marker\\"', "")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_no_line_below_the_level_is_written(
    level: logs.LogLevel, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(as_json=True, level=level)
    log = structlog.get_logger("gateway.door")
    for each in ("debug", "info", "warning", "error"):
        getattr(log, each)("it happened", connection="c1")
    logging.getLogger("redis").warning("it happened", extra={"connection": "c1"})
    *told, last = lines(capsys)
    assert last["logger"] == ("redis" if level != "error" else "gateway.door")
    told += [last] if level == "error" else []
    assert [line["level"] for line in told] == written
    assert all(
        line.keys() == {"event", "level", "logger", "timestamp", "connection"} for line in told
    )
    assert {line["logger"] for line in told} == {"gateway.door"}


@pytest.mark.parametrize("library", ["aiokafka.conn", "redis.asyncio.cluster", "asyncio"])
def test_libraries_warnings_are_written_some_a_minute(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(as_json=True, level="debug")
    logger = logging.getLogger(library)
    for attempt in range(100):
        logger.info("attempt %s", attempt)
        logger.warning("attempt %s failed", attempt)
    logging.getLogger().handlers[0].close()
    *warnings, last = lines(capsys)
    assert [line["event"] for line in warnings] == [f"attempt {n} failed" for n in range(5)]
    assert {line["logger"] for line in warnings} == {library}
    assert (last["event"], last["level"], last["of"], last["by"], last["left_out"]) == (
        "lines were left out", "warning", "attempt %s failed", library, 95,
    )  # fmt: skip


def test_a_storm_of_tracebacks_leaves_some(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=True)
    log = structlog.get_logger("gateway.connection")
    for _ in range(2_000):
        log.error("a connection failed, and is ended")
        log.info("it happened")
    told = [line["event"] for line in lines(capsys)]
    assert told.count("a connection failed, and is ended") == 20
    assert told.count("it happened") == 1_000
