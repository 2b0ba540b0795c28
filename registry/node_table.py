"""The nodes that count, live and lost, and which of them a user's entry names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from registry.directory import Node

#: No gateway writes a longer entry: 256 elements with the longest names would fit.
MAX_ENTRY_BYTES: Final = 64 * 1024
_MAX_REMEMBERED: Final = 16_384
_MAX_REMEMBERED_BYTES: Final = 512
_EXPIRES = re.compile(rb"[0-9]{1,12}")


class AsOf(NamedTuple):
    """The state of the leases at a reading: the generation of keys, and the last change of a lease.

    Between two readings with equal states no lease was gained or given up. Both values are opaque
    bytes; None where Redis has no such key.
    """

    generation: bytes | None = None
    changed: bytes | None = None


NEVER: Final = AsOf()


class NodeTable:
    """A snapshot of the nodes that count, live and lost, against which users' entries are read.

    An element does not count if its node is missing from the table, or is listed with another
    epoch, or if the element has expired. Entries are short, and many users have equal entries
    (expiry is in whole minutes). So the table remembers which nodes an entry means, for as long as
    the snapshot lives: a second or so.
    """

    def __init__(
        self,
        live: Iterable[Node] = (),
        lost: Iterable[Node] = (),
        *,
        now: int = 0,
        as_of: AsOf = NEVER,
    ) -> None:
        """`now` is the registry's own time, in epoch seconds, when the nodes were read."""
        self.as_of = as_of
        self.live = frozenset(live)
        self.lost = frozenset(lost)
        self._nodes = {node.tag: node for node in self.live | self.lost}
        self._now = now
        self._meanings: dict[bytes, tuple[Node, ...]] = {}
        self._elements: dict[bytes, Node | None] = {}
        self._dead: set[bytes] = set()
        #: Tags in entries that the snapshot lacks: of dead nodes, or of nodes newer than the
        #: snapshot.
        self.strangers: set[bytes] = set()

    def meaning(self, entry: bytes) -> tuple[Node, ...]:
        """Return the nodes that an entry names and that count, without duplicates."""
        meaning = self._meanings.get(entry)
        if meaning is None:
            meaning = self._read(entry)
            if len(entry) <= _MAX_REMEMBERED_BYTES and len(self._meanings) < _MAX_REMEMBERED:
                self._meanings[entry] = meaning
        return meaning

    def meanings(self, entries: Sequence[bytes | None]) -> list[tuple[Node, ...] | None]:
        """Return the nodes of every entry that count, in the entries' order; `()` for no entry."""
        meaning = self.meaning
        return [() if entry is None else meaning(entry) for entry in entries]

    def take_for_dead(self, strangers: Iterable[bytes]) -> None:
        """Take note that nodes are dead: a fresh reading of the leases did not show them.

        From now on `strangers` does not get their tags.
        """
        self._dead |= set(strangers)

    def _read(self, entry: bytes) -> tuple[Node, ...]:
        if len(entry) > MAX_ENTRY_BYTES:
            return ()
        elements = self._elements
        nodes: list[Node] = []
        for element in entry.split(b" "):
            node = elements[element] if element in elements else self._element(element)
            if node is not None:
                nodes.append(node)
        return tuple(dict.fromkeys(nodes)) if len(nodes) > 1 else tuple(nodes)

    def _element(self, element: bytes) -> Node | None:
        tag, _, expires = element.rpartition(b":")
        node = self._nodes.get(tag)
        if node is None and tag not in self._dead and len(self.strangers) < _MAX_REMEMBERED:
            self.strangers.add(tag[:_MAX_REMEMBERED_BYTES])
        if node is not None and not (_EXPIRES.fullmatch(expires) and int(expires) > self._now):
            node = None
        if len(element) <= _MAX_REMEMBERED_BYTES and len(self._elements) < _MAX_REMEMBERED:
            self._elements[element] = node
        return node
