"""The limit of open files is as high as the system lets it be."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from pushgate.descriptors import raise_limit


@pytest.fixture
def hard() -> Iterator[int]:
    """Give the hard limit; the soft one is below it. Both are as before after the test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20 if before[1] == resource.RLIM_INFINITY else before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most - 1, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_to_the_hard_one(hard: int) -> None:
    for _ in range(2):
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize("error", [ValueError("not allowed"), OSError("no such limit")])
def test_where_it_can_not_be_raised_a_warning_says_so(
    hard: int, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("pushgate.descriptors.resource.setrlimit", refuse)
    with capture_logs() as entries:
        raise_limit()
    monkeypatch.undo()
    (entry,) = entries
    assert (entry["log_level"], entry["hard"], entry["error"]) == ("warning", hard, str(error))
