"""Real servers that stand in for each other: behind a Sentinel, and as a Cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from pushgate.embedded import LOOPBACK, tied_to_parent
from tests.support.processes import free_port, wait_until
from tests.support.valkey import Files, Kind, RedisServer, tls_words

#: After so long in silence a master counts as lost.
LOST_MILLISECONDS = 700
#: Without replicas nobody takes over, and a master that has no CPU for a second is not lost.
_PATIENT_MILLISECONDS = 15_000


def await_replica(server: RedisServer) -> None:
    """Return once a replica has all of its master."""
    with server.client() as asked:
        wait_until(
            lambda: _replication(asked).get("master_link_status") == "up", "a synced replica"
        )


def part(master: RedisServer, replica: RedisServer) -> None:
    """Keep from a replica what its master is told from now on, as a slow network would."""
    with master.client() as asked, replica.client() as parted:
        parted.config_set("masteruser", "nobody")
        parted.config_set("masterauth", "wrong")
        asked.execute_command("CLIENT", "KILL", "TYPE", "replica")
        wait_until(lambda: _replication(parted)["master_link_status"] == "down", "a parted replica")


def await_promotion(server: RedisServer) -> None:
    """Return once a replica has become a master."""
    with server.client() as asked:
        wait_until(lambda: _replication(asked)["role"] == "master", "the replica is the master")


def _replication(asked: redis.Redis) -> dict[str, Any]:
    info: dict[str, Any] = asked.info("replication")
    return info


class Sentinel(RedisServer):
    """A Sentinel that watches one master, `main`, and decides alone whether it is lost."""

    def __init__(
        self, master: RedisServer, *, password: str = "", lines: Sequence[str] = ()
    ) -> None:
        """`password` is the master's, `lines` are further ones of its configuration."""
        super().__init__(master.kind, tls=master.tls)
        self._master = master
        self._password = password
        self._lines = lines

    @property
    def url(self) -> str:
        """How to reach the master through it."""
        scheme = "redis" if self.tls is None else "rediss"
        return f"{scheme}+sentinel://{LOOPBACK}:{self.port}/main/0"

    def _command(self, binary: Path, directory: Path) -> list[str]:
        config = directory / "sentinel.conf"
        config.write_text(
            f"sentinel monitor main {LOOPBACK} {self._master.port} 1\n"
            f"sentinel down-after-milliseconds main {LOST_MILLISECONDS}\n"
            "sentinel failover-timeout main 5000\n"
            + (f'sentinel auth-pass main "{self._password}"\n' if self._password else "")
            + "".join(f"{line}\n" for line in self._lines)
        )
        listening = ["--port", str(self.port), "--bind", LOOPBACK, "--dir", str(directory)]
        listening += tls_words(self.port, self.tls)
        return tied_to_parent([str(binary), str(config), "--sentinel", *listening])


class ReplicatedRedis:
    """A master and its replica behind a Sentinel. A context manager."""

    def __init__(self, kind: Kind = "valkey") -> None:
        self.master = RedisServer(kind)
        self.replica = RedisServer(kind, settings=["--replicaof", LOOPBACK, str(self.master.port)])
        self.sentinel = Sentinel(self.master)
        self._running = ExitStack()

    @property
    def url(self) -> str:
        """How to reach whichever is the master."""
        return self.sentinel.url

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for server in (self.master, self.replica, self.sentinel):
                starting.enter_context(server)
            await_replica(self.replica)
            with self.sentinel.client() as asked:
                known: Any = asked.sentinel_slaves
                wait_until(lambda: len(known("main")) == 1, "the Sentinel knows the replica")
            self._running = starting.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._running.close()


class _Member(RedisServer):
    def __init__(self, kind: Kind, tls: Files | None, lost_milliseconds: int) -> None:
        self.bus_port = free_port()
        settings = {
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-node-timeout": str(lost_milliseconds),
            "cluster-replica-validity-factor": "0",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        super().__init__(kind, settings=words, tls=tls)


class RedisCluster:
    """A Cluster of masters that share the slots evenly, each with a replica or none.

    A context manager. Server i and its replica have the i-th share.
    """

    def __init__(
        self,
        kind: Kind = "valkey",
        *,
        masters: int = 3,
        replicas: bool = False,
        spare: bool = False,
        tls: Files | None = None,
    ) -> None:
        """`spare`: one more master joins, without a slot."""
        lost_milliseconds = LOST_MILLISECONDS if replicas else _PATIENT_MILLISECONDS

        def members(count: int) -> list[_Member]:
            return [_Member(kind, tls, lost_milliseconds) for _ in range(count)]

        self.masters = members(masters)
        self.spares = members(1 if spare else 0)
        self.replicas = members(masters if replicas else 0)
        self._scheme = "redis" if tls is None else "rediss"
        self._share = -(-REDIS_CLUSTER_HASH_SLOTS // masters)
        self._running = ExitStack()

    @property
    def url(self) -> str:
        """How to reach it, by any of its masters."""
        return f"{self._scheme}+cluster://" + ",".join(
            f"{LOOPBACK}:{node.port}" for node in self.masters
        )

    def client(self) -> redis.RedisCluster:
        """Give a client of it; close it."""
        return redis.RedisCluster(host=LOOPBACK, port=self.masters[-1].port)

    def owner_of(self, key: bytes) -> int:
        """Give the number of the master whose share the key is in."""
        return key_slot(key) // self._share

    @contextmanager
    def moving(
        self, tag: bytes, *, share: float, to_spare: bool = False
    ) -> Iterator[Callable[[], None]]:
        """Have a tag's slot on its way to another master, with a share of its keys there already.

        Gives what completes the move: the other keys are moved, and every master is told.
        """
        slot, source = key_slot(tag), self.owner_of(tag)
        servers = [*self.masters, *self.spares]
        target = len(self.masters) if to_spare else (source + 1) % len(self.masters)
        with ExitStack() as clients:
            asked: list[Any] = [clients.enter_context(node.client()) for node in servers]
            ids = [node.cluster("MYID") for node in asked]

            def move(count: int) -> None:
                keys = asked[source].cluster("GETKEYSINSLOT", slot, count)
                to = (LOOPBACK, servers[target].port)
                if keys:
                    asked[source].execute_command("MIGRATE", *to, "", 0, 1000, "KEYS", *keys)

            def complete() -> None:
                move(1_000)
                for node in (asked[target], asked[source], *asked):
                    node.cluster("SETSLOT", slot, "NODE", ids[target])

            asked[target].cluster("SETSLOT", slot, "IMPORTING", ids[source])
            asked[source].cluster("SETSLOT", slot, "MIGRATING", ids[target])
            move(round(share * asked[source].cluster("COUNTKEYSINSLOT", slot)))
            yield complete

    def await_ok(self, servers: Sequence[RedisServer]) -> None:
        """Return once these see every slot served."""
        for server in servers:
            with server.client() as asked:
                wait_until(
                    lambda asked=asked: _cluster_info(asked)["cluster_state"] == "ok",  # type: ignore[misc]
                    "every slot is served",
                )

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for server in (*self.masters, *self.replicas, *self.spares):
                starting.enter_context(server)
            self._join()
            self._running = starting.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._running.close()

    def _join(self) -> None:
        servers = [*self.masters, *self.replicas, *self.spares]
        with ExitStack() as clients:
            asked: list[Any] = [clients.enter_context(server.client()) for server in servers]
            for number, node in enumerate(asked):
                # Gossip may have been faster: then it has an epoch.
                with suppress(redis.ResponseError):
                    node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for number, node in enumerate(asked[: len(self.masters)]):
                first = number * self._share
                last = min(first + self._share, REDIS_CLUSTER_HASH_SLOTS) - 1
                node.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            for server in servers[1:]:
                asked[0].execute_command("CLUSTER", "MEET", LOOPBACK, server.port, server.bus_port)
            for node in asked:
                wait_until(
                    lambda node=node: (
                        _cluster_info(node)["cluster_known_nodes"]  # type: ignore[misc]
                        == str(len(servers))
                    ),
                    "every server of the Cluster knows every other",
                )
            for master, replica in zip(
                asked, asked[len(self.masters) :][: len(self.replicas)], strict=False
            ):
                replica.execute_command("CLUSTER", "REPLICATE", master.cluster("MYID"))
        for replica_server in self.replicas:
            await_replica(replica_server)
        self.await_ok(servers)


def _cluster_info(asked: redis.Redis) -> dict[str, str]:
    info: dict[str, str] = asked.execute_command("CLUSTER INFO")
    return info
