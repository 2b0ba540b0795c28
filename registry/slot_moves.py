"""Commands on a Cluster, also while a slot moves from one master to another.

A slot moves key by key (Redis Cluster specification, "Cluster live reconfiguration"). Meanwhile
the old master answers commands whose keys are there. For keys that have left or are new, the
old master says ASK: the new master answers after an ASKING on the same connection. Where a
command's keys are on two masters, both say TRYAGAIN until all keys have left: such a command is
split by its keys. Once the slot has moved, the old master says MOVED.

redis-py follows ASK too, but sends ASKING and the command on two connections of a pool. And
redis-py repeats a command after TRYAGAIN until the time-out of the whole pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import AskError, MovedError, TryAgainError

#: A key, and a command with its arguments. On a Cluster the command goes to the key's master.
Command = tuple[bytes, tuple[Any, ...]]

#: How often one command is sent to another master. A slot that moves needs one; two masters that
#: name each other, while the move is completed, need a few milliseconds.
_MAX_REDIRECTIONS: Final = 5
_PAUSE_SECONDS: Final = 0.01


class ClusterCommands:
    """Sends commands to the masters of their slots, those for one master in a single write."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies in the order of the commands; errors stand in place of replies.

        An MGET whose keys are on two masters is split into GETs. Another command for such keys is
        answered TryAgainError, and nothing of the command was done.
        """
        replies = await self._send(commands, [None] * len(commands))
        for attempt in range(_MAX_REDIRECTIONS):
            redirections = {n: error for n, error in enumerate(replies) if _is_elsewhere(error)}
            if not redirections:
                break
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS)
            masters = [await self._redirected(error) for error in redirections.values()]
            again = await self._send([commands[n] for n in redirections], masters)
            for n, reply in zip(redirections, again, strict=True):
                replies[n] = reply
        for n, (key, command) in enumerate(commands):
            if isinstance(replies[n], TryAgainError) and command[0] == "MGET":
                replies[n] = await self._get_each(key, command[1:])
        return replies

    async def _get_each(self, tag: bytes, keys: Sequence[bytes]) -> list[Any] | Exception:
        replies = await self.replies([(tag, ("GET", key)) for key in keys])
        return next((reply for reply in replies if isinstance(reply, Exception)), replies)

    async def _redirected(self, error: AskError) -> ClusterNode | None:
        """Return the master that is to be asked, or None: the master of the slot, as now known."""
        nodes = self._cluster.nodes_manager
        if isinstance(error, MovedError):
            await nodes.move_slot(error)
            return None
        master = self._cluster.get_node(error.host, error.port)
        if master is None:  # new in the Cluster: has no slots yet
            master = ClusterNode(error.host, error.port, "primary", **nodes.connection_kwargs)
            nodes.set_nodes(nodes.nodes_cache, {master.name: master})
        return master

    async def _send(
        self, commands: Sequence[Command], masters: Sequence[ClusterNode | None]
    ) -> list[Any]:
        """Send each command to the master of its slot, or to the importing one in `masters`."""
        pipeline = self._cluster.pipeline(transaction=False)
        positions: list[int] = []
        sent = 0
        for (key, command), importing in zip(commands, masters, strict=True):
            # Without a target redis-py would hash every key of a command to find the master.
            slot = self._cluster.keyslot(key)
            master = importing or self._cluster.nodes_manager.get_node_from_slot(slot)
            if importing is not None:
                pipeline.execute_command("ASKING", target_nodes=master)
                sent += 1
            pipeline.execute_command(*command, target_nodes=master)
            positions.append(sent)
            sent += 1
        replies = await pipeline.execute(raise_on_error=False, allow_redirections=False)
        return [replies[position] for position in positions]


def _is_elsewhere(reply: Any) -> bool:
    return isinstance(reply, AskError)  # MovedError is one too
