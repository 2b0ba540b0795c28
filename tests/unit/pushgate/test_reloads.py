"""Reloads: who may ask for one, what is refused, and what whoever asks is told."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pushgate.reloads import NoReload, Reloads, Renewal, Request, ask, reloads_at
from pushgate.supervisor import Supervisor
from tests.support.clients import eventually
from tests.support.notify import NotifySocket
from tests.support.processes import inherited

pytestmark = pytest.mark.anyio

SECONDS = 20.0
BOTH = [Renewal(0, pid=10), Renewal(1, pid=11)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Processes:
    """What is renewed: the environments that reloads came with, and how they end."""

    def __init__(self) -> None:
        self.environments: list[Mapping[str, str] | None] = []
        self.renewals = BOTH
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def renew(self, environment: Mapping[str, str] | None) -> AsyncIterator[Renewal]:
        self.environments.append(environment)
        for renewal in self.renewals:
            await self.go_on.wait()
            yield renewal


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "takeover")


@pytest.fixture
def processes() -> Processes:
    return Processes()


@pytest.fixture
def environment(path: str) -> dict[str, str]:
    return {"PATH": "/bin", "PUSHGATE_TAKEOVER_SOCKET": path, "PUSHGATE_PORT": "1"}


@pytest.fixture
async def reloads(
    path: str, processes: Processes, environment: dict[str, str]
) -> AsyncIterator[Reloads]:
    reloads = Reloads(path, processes.renew, Supervisor(), environment=environment)
    yield reloads
    processes.go_on.set()
    await reloads.end()


def mode_of(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def names_beside(path: str) -> list[str]:
    return sorted(place.name for place in Path(path).parent.iterdir())


async def told(path: str, request: Request) -> list[Renewal]:
    async with asyncio.timeout(SECONDS):
        return [renewal async for renewal in ask(path, request)]


async def test_what_becomes_of_each_process_is_told(
    reloads: Reloads, path: str, processes: Processes
) -> None:
    await reloads.listen()
    assert mode_of(f"{path}.reload") == 0o600
    assert await told(path, Request()) == BOTH
    assert processes.environments == [None]


async def test_variables_replace_the_settings_and_nothing_else(
    reloads: Reloads, path: str, processes: Processes
) -> None:
    await reloads.listen()
    given = {"PATH": "/other", "PUSHGATE_TAKEOVER_SOCKET": path, "PUSHGATE_ORIGINS": "https://new"}
    link = {"PUSHGATE_SERVICE_HOST": "10.0.0.1"}
    with capture_logs() as logs:
        assert await told(path, Request(given | link)) == BOTH
    assert processes.environments == [given | {"PATH": "/bin"}]
    assert "variables that are no settings" in [entry["event"] for entry in logs]


@pytest.mark.parametrize(
    "changed", [{"PUSHGATE_TAKEOVER_SOCKET": "/else"}, {"PUSHGATE_WORKERS": "3"}]
)
async def test_what_both_processes_have_to_agree_on_stays(
    reloads: Reloads, path: str, processes: Processes, changed: dict[str, str]
) -> None:
    await reloads.listen()
    given = {"PUSHGATE_TAKEOVER_SOCKET": path} | changed
    with pytest.raises(NoReload, match=f"can't change {next(iter(changed))}: restart"):
        await told(path, Request(given))
    assert processes.environments == []


async def test_one_reload_runs_at_a_time_and_whoever_began_it_may_go(
    reloads: Reloads, path: str, processes: Processes
) -> None:
    await reloads.listen()
    processes.go_on.clear()
    first = asyncio.create_task(told(path, Request()))
    await eventually(lambda: processes.environments, "it has begun")
    with pytest.raises(NoReload, match="another reload runs"):
        await told(path, Request())
    first.cancel()
    await asyncio.wait((first,))
    with pytest.raises(NoReload, match="another reload runs"):
        await told(path, Request())
    with capture_logs() as logs:
        processes.go_on.set()
        await eventually(lambda: "reload has ended" in [log["event"] for log in logs], "its end")
    assert [log["pid"] for log in logs if log["event"] == "renewed"] == [10, 11]
    assert await told(path, Request()) == BOTH


async def test_a_gateway_that_is_not_ready_or_not_there_is_an_error(
    reloads: Reloads, path: str
) -> None:
    with pytest.raises(NoReload, match="no gateway that is ready listens at"):
        await told(path, Request())
    with pytest.raises(NoReload, match="not ready"):
        reloads.begin(None, print)


async def test_a_gateway_that_ends_meanwhile_is_an_error(path: str) -> None:
    def end(_: object, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(end, f"{path}.reload"):
        with pytest.raises(NoReload, match="has ended meanwhile"):
            await told(path, Request())


async def test_a_successor_takes_the_socket_in_place_of_its_predecessor(
    reloads: Reloads, path: str, environment: dict[str, str]
) -> None:
    await reloads.listen()
    later = Processes()
    later.renewals = [Renewal(None, pid=12)]
    successor = Reloads(path, later.renew, Supervisor(), environment=environment)
    await successor.listen()
    await reloads.end()
    assert await told(path, Request()) == later.renewals
    assert names_beside(path) == ["takeover.reload"]
    await successor.end()


async def test_the_socket_of_a_killed_gateway_is_replaced(reloads: Reloads, path: str) -> None:
    async with await asyncio.start_unix_server(print, f"{path}.reload"):
        pass
    await reloads.listen()
    assert await told(path, Request()) == BOTH


async def test_without_a_socket_the_gateway_serves_and_says_so(processes: Processes) -> None:
    unable = Reloads("/nowhere/takeover", processes.renew, Supervisor(), environment={})
    with capture_logs() as logs:
        await unable.listen()
    assert "no reload socket" in logs[0]["event"]
    await unable.end()


@pytest.mark.parametrize("sent", [b"", b"{}", b"no JSON\n", b'{"variables": 1}\n'])
async def test_what_is_no_request_begins_nothing(
    reloads: Reloads, path: str, processes: Processes, sent: bytes
) -> None:
    await reloads.listen()
    reader, writer = await asyncio.open_unix_connection(f"{path}.reload")
    writer.write(sent)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), SECONDS) == b""
    writer.close()
    assert processes.environments == []


async def test_whoever_asks_for_nothing_is_cut_off(
    reloads: Reloads, path: str, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pushgate.reloads._REQUEST_SECONDS", 0.1)
    await reloads.listen()
    reader, writer = await asyncio.open_unix_connection(f"{path}.reload")
    assert await asyncio.wait_for(reader.read(), SECONDS) == b""
    writer.close()


async def test_settings_are_sent_to_no_other_user(
    reloads: Reloads, path: str, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reloads.listen()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(NoReload, match="another user's"):
        await told(path, Request({"PUSHGATE_TAKEOVER_SOCKET": path}))
    assert processes.environments == []


async def test_the_supervisor_hears_of_a_reload_that_a_signal_began(
    path: str, processes: Processes, tmp_path: Path
) -> None:
    with NotifySocket(str(tmp_path / "notify")) as systemd, capture_logs() as logs:
        supervisor = Supervisor.of_process({"NOTIFY_SOCKET": systemd.address})
        reloads = reloads_at(path, processes.renew, supervisor, {})
        assert reloads is not None
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: logs, "refused: it is not ready")
        assert logs[0]["event"] == "a reload is refused"
        await reloads.listen()
        processes.renewals = [Renewal(0, error="its successor ended")]
        os.kill(os.getpid(), signal.SIGHUP)
        begun = await asyncio.to_thread(systemd.next)
        assert begun.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert await asyncio.to_thread(systemd.next) == "READY=1\n"
        await reloads.end()
        supervisor.close()
        assert ("not renewed", "error") in [(log["event"], log["log_level"]) for log in logs]
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


def test_without_a_take_over_socket_there_are_no_reloads(processes: Processes) -> None:
    assert reloads_at(None, processes.renew, Supervisor(), {}) is None


async def test_the_command_says_what_became_of_each_and_exits_with_it(
    reloads: Reloads, path: str, processes: Processes
) -> None:
    await reloads.listen()
    processes.renewals = [Renewal(0, pid=10), Renewal(1), Renewal(2, error="its successor ended")]
    said = (
        "worker 0: renewed, process 10\n"
        "worker 1: does not run; its next start is a new process\n"
        "worker 2: not renewed: its successor ended\n"
    )
    assert await command(path) == (1, said, "")


async def test_the_command_says_why_there_is_no_reload(
    reloads: Reloads, path: str, processes: Processes
) -> None:
    status, _, said = await command(path)
    assert status == 1
    assert "no gateway that is ready listens" in said
    await reloads.listen()
    status, _, said = await command(path, "--environment", PUSHGATE_WORKERS="2")
    assert status == 1
    assert "a reload can't change PUSHGATE_WORKERS" in said
    status, out, _ = await command(path, "--environment", "--json", PUSHGATE_ORIGINS="https://new")
    assert (status, out.splitlines()[0]) == (0, '{"worker":0,"pid":10,"error":null}')
    (given,) = processes.environments
    assert given is not None
    assert given["PUSHGATE_ORIGINS"] == "https://new"
    assert "PUSHGATE_PORT" not in given


async def command(path: str, *flags: str, **variables: str) -> tuple[int, str, str]:
    """Run `pushgate reload`; give its status, standard output, and standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pushgate", "reload", *flags),
        env={**inherited(), "PUSHGATE_TAKEOVER_SOCKET": path, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    return process.returncode or 0, out.decode(), err.decode()
