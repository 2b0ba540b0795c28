"""The bounded map that forgets what is oldest."""

import pytest

from registry.recent import Recent


def test_what_was_put_is_there_until_so_much_else_was_put() -> None:
    recent: Recent[int, str] = Recent(10)
    for number in range(100):
        recent.put(number, str(number))
        assert len(recent) <= 10
        for kept in range(max(0, number - 4), number + 1):
            assert recent.get(kept) == str(kept)
    assert recent.get(80) is None


def test_the_last_value_counts_wherever_the_first_is() -> None:
    recent: Recent[str, int] = Recent(4)
    for value in range(10):
        recent.put("a", value)
        recent.put(f"other-{value % 3}", 0)
        assert recent.get("a") == value


@pytest.mark.parametrize("others", [0, 3])
def test_what_is_forgotten_is_gone(others: int) -> None:
    recent: Recent[str, int] = Recent(6)
    recent.put("a", 1)
    for number in range(others):
        recent.put(f"other-{number}", 0)
    recent.forget("a")
    recent.forget("a")
    assert recent.get("a") is None
    assert len(recent) == others
