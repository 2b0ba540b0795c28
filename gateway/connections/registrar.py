"""Keeps the registry in step with the hub: the node's lease, and its elements in users' entries.

Only users who came or went since the last write are written. A write takes the state of its users
from the hub at the time of the write, not of the change: the hub is the truth, so even a late or a
repeated write writes the truth. One write is in flight at a time, and the next write takes all
changes that came in the meantime. So batches grow with load, and a lone connect is written at once.

Users who are only asserted again wait apart, and go with the writes of users who came or went: a
client who connects after an outage does not wait until all the node's users are asserted again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Container
from itertools import islice
from typing import Final

import structlog

from gateway import metrics
from gateway.connections.hub import Hub
from gateway.connections.outage import Outage
from registry.directory import (
    Lease,
    Node,
    Processors,
    Registry,
    RegistryUnavailable,
    Timings,
)

_USERS_A_WRITE: Final = 1_000
#: How many users of a full write are asserted again, where so many wait: a storm of connects must
#: not put the re-assertion off for ever.
_REASSERTED_A_WRITE: Final = 100
#: Writes begin so far apart at least; a user who comes after a longer pause is written at once. A
#: write takes 0.2 ms of CPU time however few its users: in a storm of handshakes, writes without a
#: pause would have a few users each, and take a sixth of the CPU time.
_BETWEEN_WRITES_SECONDS: Final = 0.01
#: Time limits of waiters end at multiples of this time, so that many waiters share a timer: a timer
#: of its own would be 3 % of a handshake's CPU time.
_LIMIT_SECONDS: Final = 0.01
_RETRY_SECONDS: Final = (0.1, 0.25, 0.5, 1.0)

_heartbeat_seconds: Final = metrics.REGISTRY_SECONDS.labels("heartbeat")
_write_seconds: Final = metrics.REGISTRY_SECONDS.labels("write")

log = structlog.get_logger("gateway.registrar")


class Registrar:
    """Writes the lease of one node, and the node's elements in the entries of its users."""

    def __init__(
        self,
        registry: Registry,
        node: Node,
        hub: Hub,
        *,
        timings: Timings,
        held: Callable[[Processors, float], None] | None = None,
    ) -> None:
        """`held` is called after each heartbeat that has the lease: the time, and processors.

        And with the seconds since the heartbeat before, or the most of them where the processors
        could not be read meanwhile. None where clients don't resume.
        """
        self.ready = asyncio.Event()  # set once the node's name is claimed
        self._registry = registry
        self._node = node
        self._hub = hub
        self._timings = timings
        # Dicts as ordered sets: the user who changed first is written first.
        self._changed: dict[str, None] = {}  # users who came or went, to be written
        self._unsure: dict[str, None] = {}  # other users, to be asserted again
        self._writing: dict[str, None] = {}  # users of the write in flight
        self._waiters: dict[str, dict[asyncio.Future[bool], None]] = {}
        #: The waiters with a time limit at n × _LIMIT_SECONDS of the loop's time, by n.
        self._limited: dict[int, dict[asyncio.Future[bool], None]] = {}
        self._any_to_write = asyncio.Event()
        self._outage = Outage()
        self._held = held
        self._held_at = -math.inf  # the loop's time of the last heartbeat that had an answer
        self._longest_away_seconds = 0.0  # between two heartbeats, since `held` was called last
        #: Users whom another process of this node registers, beside those of the hub.
        self.elsewhere: Container[str] = frozenset()
        self._owns_name = True  # False while another process has a lease under this node's name

    @property
    def warning(self) -> str:
        """What is wrong with the registry, for `/readyz`; empty where all is well."""
        return self._outage.warning

    def changed(self, user: str) -> None:
        """Note that a user came or went: to be written when the write in flight is done."""
        self._unsure.pop(user, None)
        self._changed[user] = None
        self._any_to_write.set()

    def is_writing(self, user: str) -> bool:
        """Whether a write that has the user is in flight."""
        return user in self._writing

    @property
    def is_writing_any(self) -> bool:
        """Whether a write is in flight."""
        return bool(self._writing)

    def unwritten(self) -> list[str]:
        """Return the users whose change is not written yet, as far as is known."""
        return [*self._changed, *self._unsure, *self._writing]

    def leave_to_next(self, user: str) -> bool:
        """Leave a user to the next process; return whether a change of the user is unwritten."""
        is_unwritten = user in self._changed or user in self._unsure
        self._changed.pop(user, None)
        self._unsure.pop(user, None)
        return is_unwritten

    def go_on(self, age_seconds: float | None) -> None:
        """Take over the lease of the earlier process, and the entries that it has written.

        The lease is `age_seconds` old; None where it was not held.
        """
        if age_seconds is not None:
            self._held_at = asyncio.get_running_loop().time() - age_seconds
        self.ready.set()

    @property
    def lease_age_seconds(self) -> float | None:
        """The time since the last heartbeat that had the lease; None where there was none."""
        age_seconds = asyncio.get_running_loop().time() - self._held_at
        return age_seconds if math.isfinite(age_seconds) else None

    async def written(self, user: str, *, timeout_seconds: float) -> bool:
        """Wait until a user's last change is in the registry; False after `timeout_seconds`.

        The time limit may be late by _LIMIT_SECONDS.
        """
        if user in self._unsure:  # connects beside an earlier connection: is not to wait longer
            self.changed(user)
        if user not in self._changed and user not in self._writing:
            return True
        # A future, and no asyncio.wait(), which takes three times as long, on every handshake.
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        user_waiters = self._waiters.setdefault(user, {})
        user_waiters[waiter] = None
        same_limit = self._limit(timeout_seconds)
        same_limit[waiter] = None
        try:
            return await waiter
        finally:
            same_limit.pop(waiter, None)
            del user_waiters[waiter]
            if not user_waiters and self._waiters.get(user) is user_waiters:
                del self._waiters[user]

    def _limit(self, timeout_seconds: float) -> dict[asyncio.Future[bool], None]:
        """Return the waiters with a time limit in `timeout_seconds`; the caller joins them."""
        loop = asyncio.get_running_loop()
        number = math.ceil((loop.time() + timeout_seconds) / _LIMIT_SECONDS)
        waiters = self._limited.get(number)
        if waiters is None:
            waiters = self._limited[number] = {}
            loop.call_at(number * _LIMIT_SECONDS, self._end_limit, number)
        return waiters

    def _end_limit(self, number: int) -> None:
        for waiter in self._limited.pop(number):
            _settle(waiter, False)

    async def run(self) -> None:
        """Claim the node's name, then keep the lease and the entries until cancelled.

        The lease of an earlier process (`go_on`) is kept as it is.
        """
        if self.ready.is_set():
            await self._try_heartbeat()  # at once: it has the time of cursors
        else:
            await self._claim()
            self.ready.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_lease())
            tasks.create_task(self._keep_entries())
            tasks.create_task(self._reassert_paced())

    async def retire(self, *, timeout_seconds: float) -> None:
        """Write the remaining changes and give up the lease, within `timeout_seconds`.

        Where the time is too short, or the registry does not answer, a warning is logged.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._changed:
                    await self._write_batch()
                await self._registry.retire(self._node)
        except (RegistryUnavailable, TimeoutError) as error:
            # No harm: the lease lapses by itself, and no entry of a node counts without a lease.
            log.warning("left without goodbye", error=str(error))

    async def _claim(self) -> None:
        attempt = 0
        while True:
            try:
                await self._heartbeat(claim=True)
                return
            except RegistryUnavailable as error:
                self._failed(error)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(
                _RETRY_SECONDS[-1] if self._outage.lasts else self._timings.heartbeat_seconds
            )
            await self._try_heartbeat()

    async def _try_heartbeat(self) -> None:
        try:
            await self._heartbeat()
            await self._see_whether_back()
        except RegistryUnavailable as error:
            self._failed(error)

    async def findable(self, user: str, *, timeout_seconds: float) -> bool:
        """Wait until look-ups find a user: the user's entry is written, and the lease is held.

        False after `timeout_seconds`.
        """
        return await self.written(user, timeout_seconds=timeout_seconds) and self._holds_lease()

    def is_findable(self, user: str) -> bool:
        """Whether look-ups find a user now, as far as is known without a write."""
        is_written = not (user in self._changed or user in self._writing or user in self._unsure)
        return is_written and self._holds_lease()

    def _holds_lease(self) -> bool:
        held_for = asyncio.get_running_loop().time() - self._held_at
        return self._owns_name and held_for < self._timings.lease_seconds

    async def _heartbeat(self, *, claim: bool = False) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        processors = await self._live_processors()
        with _heartbeat_seconds.time():
            lease = await self._registry.heartbeat(self._node, claim=claim)
        self._note_owner(self._node.name, own=lease is not Lease.TAKEN)
        if lease is not Lease.TAKEN:
            # To the end of the call: the renewal came somewhere between.
            away_seconds = 0.0 if claim else loop.time() - self._held_at
            self._longest_away_seconds = max(self._longest_away_seconds, away_seconds)
            self._held_at = began
            if processors is not None and self._held is not None:
                self._held(processors, self._longest_away_seconds)
                self._longest_away_seconds = 0.0
        if lease is Lease.LAPSED and not claim:
            log.warning("the lease lapsed or Redis lost keys; asserting every user again")
            self._assert_all()

    async def _live_processors(self) -> Processors | None:
        """Return the live processors; None where clients don't resume, or they can't be read.

        Read in front of a heartbeat: what was settled before this time was settled while the lease
        was held, if the heartbeat finds it held.
        """
        if self._held is None:
            return None
        try:
            return await self._registry.processors()
        except RegistryUnavailable:
            return None  # the heartbeat itself may be allowed, and says what is wrong

    async def _keep_entries(self) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            await self._any_to_write.wait()
            began = loop.time()
            try:
                await self._write_batch()
                await self._see_whether_back()
            except RegistryUnavailable as error:
                self._failed(error)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1
            else:
                attempt = 0
                await asyncio.sleep(began + _BETWEEN_WRITES_SECONDS - loop.time())

    async def _write_batch(self) -> None:
        reserved = min(len(self._unsure), _REASSERTED_A_WRITE)
        changed = _take(self._changed, _USERS_A_WRITE - reserved)
        unsure = _take(self._unsure, _USERS_A_WRITE - len(changed))
        batch = [*changed, *unsure]
        self._writing = changed | unsure
        here = [user for user in batch if user in self._hub]
        gone = [user for user in batch if user not in self._hub and user not in self.elsewhere]
        try:
            with _write_seconds.time():
                await self._registry.write(self._node, here, gone)
        except BaseException:  # a cancellation too
            # Written again, before users who changed later.
            self._changed = changed | self._changed
            for user in unsure:
                self._assert(user)
            raise
        finally:
            self._writing = {}
            if not (self._changed or self._unsure):
                self._any_to_write.clear()
            metrics.REGISTRY_PENDING.set(len(self._changed) + len(self._unsure))
        for user in batch:
            # Waiters of a user who changed during the write wait for the next write.
            if user not in self._changed:
                for waiter in self._waiters.pop(user, ()):
                    _settle(waiter, True)

    async def _reassert_paced(self) -> None:
        """Assert every element once in `reassertion_seconds`, an equal share a second."""
        while True:
            users = self._hub.users()
            users_a_second = math.ceil(len(users) / self._timings.reassertion_seconds)
            for _ in range(math.ceil(self._timings.reassertion_seconds)):
                await asyncio.sleep(1.0)
                for user in users[-users_a_second:] if users_a_second else ():
                    if user in self._hub:
                        self._assert(user)
                del users[len(users) - users_a_second :]

    def _note_owner(self, name: str, *, own: bool) -> None:
        # The name is not claimed back: the newer process is the process that the operator meant,
        # and if two processes claimed a name in turn, the users of both would be lost. The newer
        # process's lease ends with the process; then this node's next heartbeat has the name again.
        if own == self._owns_name:
            return
        self._owns_name = own
        metrics.REGISTRY_NAME_TAKEN.set(not own)
        if own:
            log.info("this node's name is its own again", node=name)
        else:
            log.error(
                "another process has this node's name; messages find no user of this node",
                node=name,
                cure="give each its own PUSHGATE_NODE_NAME",
            )

    def _assert_all(self) -> None:
        metrics.REGISTRY_REASSERTED.inc()
        for user in self._hub.users():
            self._assert(user)

    def _assert(self, user: str) -> None:
        if user not in self._changed:
            self._unsure[user] = None
            self._any_to_write.set()

    def _failed(self, error: RegistryUnavailable) -> None:
        metrics.REGISTRY_ERRORS.inc()
        self._outage.failed(error)

    async def _see_whether_back(self) -> None:
        """End an outage where every master accepts a write; assert every user again then.

        Raises:
            RegistryUnavailable: the outage lasts.
        """
        if not self._outage.lasts:
            return
        await self._registry.probe()
        if self._outage.lasts:  # the other task may have noted the end during the probe
            # Redis may have run a command that timed out here late: after a newer command, whose
            # effect is then undone.
            self._outage.ended()
            self._assert_all()


def _take(users: dict[str, None], most: int) -> dict[str, None]:
    """Take the first users, `most` at most, out of an ordered set."""
    taken = dict.fromkeys(islice(users, most))
    for user in taken:
        del users[user]
    return taken


def _settle(waiter: asyncio.Future[bool], written: bool) -> None:
    if not waiter.done():
        waiter.set_result(written)
