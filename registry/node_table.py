"""Which nodes are alive, and what a user's entry means in that light."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Final

from registry.directory import Node

#: Longer entries are not ours: 256 elements of the longest names would fit.
MAX_ENTRY_BYTES: Final = 64 * 1024
_MAX_REMEMBERED: Final = 16_384
_MAX_REMEMBERED_BYTES: Final = 512
_EXPIRES = re.compile(rb"[0-9]{1,12}")


class NodeTable:
    """A snapshot of the live nodes, by which entries are read.

    An element of a node that is not in the table, or is there with another epoch, does not count.
    Entries are short and repeat (expiry is in whole minutes), so their meaning is remembered for
    as long as the snapshot lives: a second or so.
    """

    def __init__(self, nodes: Iterable[Node] = (), *, now: int = 0) -> None:
        """Take `now`, the registry's own time in epoch seconds when the nodes were read."""
        self.nodes: dict[bytes, Node] = {node.tag: node for node in nodes}
        self._now = now
        self._meanings: dict[bytes, tuple[Node, ...]] = {}
        self._elements: dict[bytes, Node | None] = {}
        self._dead: set[bytes] = set()

    def live(self, entry: bytes) -> tuple[Node, ...]:
        """Return the live nodes that an entry names."""
        meaning = self._meanings.get(entry)
        if meaning is None:
            meaning = self._read(entry)
            if len(entry) <= _MAX_REMEMBERED_BYTES and len(self._meanings) < _MAX_REMEMBERED:
                self._meanings[entry] = meaning
        return meaning

    def strangers(self, entries: Iterable[bytes]) -> set[bytes]:
        """Return the nodes in `entries` that are not in this snapshot: dead, or newer than it."""
        tags = (
            element.rpartition(b":")[0]
            for entry in entries
            if len(entry) <= MAX_ENTRY_BYTES
            for element in entry.split(b" ")
        )
        return {tag for tag in tags if tag not in self.nodes and tag not in self._dead}

    def take_for_dead(self, strangers: Iterable[bytes]) -> None:
        """Ask no more, in this snapshot's life, for nodes that a fresh reading did not show."""
        self._dead |= set(islice(strangers, _MAX_REMEMBERED))

    def _read(self, entry: bytes) -> tuple[Node, ...]:
        if len(entry) > MAX_ENTRY_BYTES:
            return ()
        nodes = [self._element(element) for element in entry.split(b" ")]
        return tuple(dict.fromkeys(node for node in nodes if node is not None))

    def _element(self, element: bytes) -> Node | None:
        if element in self._elements:
            return self._elements[element]
        tag, _, expires = element.rpartition(b":")
        node = self.nodes.get(tag)
        if node is not None and not (_EXPIRES.fullmatch(expires) and int(expires) > self._now):
            node = None
        if len(element) <= _MAX_REMEMBERED_BYTES and len(self._elements) < _MAX_REMEMBERED:
            self._elements[element] = node
        return node
