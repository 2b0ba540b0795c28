"""What was published for each user against what arrived: what is missing, repeated, out of order.

Pure book-keeping, so that what it finds can be shown without a server: a test of deliveries is only
as good as its way of noticing that one is wrong.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

#: How many names a failure shows of each kind.
_SHOWN = 5


@dataclass(slots=True)
class _Account:
    published: dict[str, float] = field(default_factory=dict)  # name → when
    arrived: list[tuple[str, float]] = field(default_factory=list)


class Ledger:
    """Messages of any number of users, each known by a name that is the user's only once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def publish(self, user: str, name: str) -> None:
        """Note that a message was published, behind the user's earlier ones."""
        published = self._account(user).published
        assert name not in published, f"{user} has a {name} already"
        published[name] = self._clock()

    def arrive(self, user: str, name: str) -> None:
        """Note that a message arrived, whatever it is."""
        self._account(user).arrived.append((name, self._clock()))

    def names(self) -> set[str]:
        """Give what was published."""
        return {name for account in self._accounts.values() for name in account.published}

    def missing(self) -> list[str]:
        """Give what was published and has not arrived."""
        return [
            name
            for account in self._accounts.values()
            for name in account.published.keys() - {name for name, _ in account.arrived}
        ]

    def repeated(self) -> list[str]:
        """Give what arrived more than once."""
        return [
            name
            for account in self._accounts.values()
            for name, times in Counter(name for name, _ in account.arrived).items()
            if times > 1
        ]

    def disordered(self) -> list[str]:
        """Give what arrived for the first time behind something that was published after it."""
        return [name for account in self._accounts.values() for name in _late(account)]

    def strange(self) -> list[str]:
        """Give what arrived and was never published for who got it."""
        return [
            name
            for account in self._accounts.values()
            for name, _ in account.arrived
            if name not in account.published
        ]

    def reached(self, users: Collection[str], *, since: float) -> bool:
        """Whether each of these users got something that was published at `since` or later."""
        accounts = [self._account(user) for user in users]
        return all(
            any(account.published[name] >= since for name in _firsts(account))
            for account in accounts
        )

    def slowest(self, users: Collection[str]) -> float:
        """Give how many seconds the slowest message of these users took to arrive first."""
        accounts = [self._accounts[user] for user in users]
        return max((took for account in accounts for took in _times(account)), default=0.0)

    def check(self, *, excused: Collection[str] = ()) -> None:
        """Fail unless all but what is `excused` arrived, nothing twice, each user's in order."""
        wrong = {
            "missing": sorted(set(self.missing()) - set(excused)),
            "repeated": self.repeated(),
            "out of order": self.disordered(),
            "never published": self.strange(),
        }
        found = [f"{len(names)} {kind}: {names[:_SHOWN]}" for kind, names in wrong.items() if names]
        assert not found, f"of {len(self.names())} messages: {'; '.join(found)}"

    def _account(self, user: str) -> _Account:
        return self._accounts.setdefault(user, _Account())


def _firsts(account: _Account) -> dict[str, float]:
    """Give when each message that was published arrived first, in that order."""
    firsts: dict[str, float] = {}
    for name, when in account.arrived:
        if name in account.published:
            firsts.setdefault(name, when)
    return firsts


def _late(account: _Account) -> Iterator[str]:
    places = {name: place for place, name in enumerate(account.published)}
    furthest = -1
    for name in _firsts(account):
        if places[name] < furthest:
            yield name
        furthest = max(furthest, places[name])


def _times(account: _Account) -> Iterator[float]:
    for name, when in _firsts(account).items():
        yield when - account.published[name]
