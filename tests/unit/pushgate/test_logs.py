"""What log lines must not say."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from pushgate import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


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
