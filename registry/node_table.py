"""Which nodes are alive, and what a user's entry means in that light."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from registry.directory import Node

#: Longer entries are not ours: 256 elements of the longest names would fit.
MAX_ENTRY_BYTES: Final = 64 * 1024
_MAX_REMEMBERED: Final = 16_384
_MAX_REMEMBERED_BYTES: Final = 512
_EXPIRES = re.compile(rb"[0-9]{1,12}")


class AsOf(NamedTuple):
    """When leases were read: in which generation of keys, after which change among them.

    Both are opaque; None where Redis has none.
    """

    generation: bytes | None = None
    changed: bytes | None = None


NEVER: Final = AsOf()


class NodeTable:
    """A snapshot of the live nodes, by which entries are read.

    An element of a node that is not in the table, or is there with another epoch, does not count.
    Entries are short and repeat (expiry is in whole minutes), so their meaning is remembered for
    as long as the snapshot lives: a second or so.
    """

    def __init__(self, nodes: Iterable[Node] = (), *, now: int = 0, as_of: AsOf = NEVER) -> None:
        """Take `now`, the registry's own time in epoch seconds when the nodes were read."""
        self.as_of = as_of
        self.nodes: dict[bytes, Node] = {node.tag: node for node in nodes}
        self._now = now
        self._meanings: dict[bytes, tuple[Node, ...]] = {}
        self._elements: dict[bytes, Node | None] = {}
        self._dead: set[bytes] = set()
        #: Tags that entries named and this snapshot lacks: dead nodes, or newer than it.
        self.strangers: set[bytes] = set()

    def live(self, entry: bytes) -> tuple[Node, ...]:
        """Return the live nodes that an entry names."""
        meaning = self._meanings.get(entry)
        if meaning is None:
            meaning = self._read(entry)
            if len(entry) <= _MAX_REMEMBERED_BYTES and len(self._meanings) < _MAX_REMEMBERED:
                self._meanings[entry] = meaning
        return meaning

    def meanings(self, entries: Sequence[bytes | None]) -> list[tuple[Node, ...] | None]:
        """Return the live nodes that each entry names; no entry names none."""
        live = self.live
        return [() if entry is None else live(entry) for entry in entries]

    def take_for_dead(self, strangers: Iterable[bytes]) -> None:
        """Count nodes that a fresh reading did not show as strangers no more."""
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
        node = self.nodes.get(tag)
        if node is None and tag not in self._dead and len(self.strangers) < _MAX_REMEMBERED:
            self.strangers.add(tag[:_MAX_REMEMBERED_BYTES])
        if node is not None and not (_EXPIRES.fullmatch(expires) and int(expires) > self._now):
            node = None
        if len(element) <= _MAX_REMEMBERED_BYTES and len(self._elements) < _MAX_REMEMBERED:
            self._elements[element] = node
        return node
