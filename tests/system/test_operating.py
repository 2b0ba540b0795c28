"""The operators' commands beside real gateways: who, kick, drain, top, audit --watch."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from typing import IO, Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis
from rich.cells import cell_len

from registry.redis_store import _key
from tests.support.clients import Client, connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import INTERNAL_SECRET, GatewayProcess, ProcessorProcess
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway
from tests.system.steps import publish, take
from tests.system.tools import SECONDS, on_terminal, running, tool

pytestmark = pytest.mark.anyio

SECRET = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
#: A name whose characters take two cells each, and one whose marks take none.
ELSEWHERE = "ユーザー漢字-สวัสดี"


# who and kick


async def test_who_finds_a_user_on_all_nodes_and_kick_ends_what_it_is_told_to(
    gateways: list[GatewayProcess], valkey: RedisServer
) -> None:
    one, two = gateways
    async with (
        connect("ws-plain", one.port, ELSEWHERE, device="phone") as phone,
        connect("sse", two.port, ELSEWHERE),
    ):
        who = await tool(valkey.url, "who", ELSEWHERE)
        assert (who.exit_code, who.stderr) == (0, "")
        head, titles, *rows = who.stdout.splitlines()
        assert head == f"{ELSEWHERE}: 2 connections on 2 nodes"
        assert titles.split()[:3] == ["node", "device", "transport"]
        assert {tuple(row.split()[:3]) for row in rows} == {
            (one.name, "phone", "websocket"), (two.name, "-", "sse"),
        }  # fmt: skip

        kick = await tool(valkey.url, "kick", ELSEWHERE, "--device", "phone")
        assert (kick.exit_code, kick.stderr) == (0, "")
        assert f"{ELSEWHERE}, device phone: 1 connection ended" in kick.stdout
        assert "a token that is still valid may connect again" in kick.stdout
        assert (await phone.ended()).code == 4003

        left = await tool(valkey.url, "who", ELSEWHERE, "--json")
        told = json.loads(left.stdout)
        assert (told["total"], told["registered"], told["errors"]) == (1, [two.name], [])
        assert told["connections"][0]["transport"] == "sse"
        all_ended = await tool(valkey.url, "kick", ELSEWHERE, "--json")
        assert json.loads(all_ended.stdout)["closed"] == 1
    for words in (["kick", ELSEWHERE], ["who", ELSEWHERE]):
        assert (await tool(valkey.url, *words)).exit_code == 3
    async with connect("sse", one.port, ELSEWHERE):  # as kick has said
        assert (await tool(valkey.url, "who", ELSEWHERE)).exit_code == 0


async def test_a_refused_secret_and_an_address_outside_the_networks_are_told(
    gateways: list[GatewayProcess], valkey: RedisServer, user: str
) -> None:
    async with connect("sse", gateways[0].port, user):
        for settings in ({"internal_secret": "x" * 32}, {"gateway_networks": "192.0.2.0/24"}):
            for command in ("who", "kick"):
                done = await tool(valkey.url, command, user, **settings)
                assert (done.exit_code, "0 connections" in done.stdout) == (1, True)
                for name in (gateways[0].name, *(f"PUSHGATE_{key.upper()}" for key in settings)):
                    assert name in done.stderr
        assert "1 connection " in (await tool(valkey.url, "who", user)).stdout


async def test_differences_of_registry_and_node_are_told(
    gateways: list[GatewayProcess], valkey: RedisServer, user: str
) -> None:
    gateway = gateways[0]
    async with connect("sse", gateway.port, user), Redis.from_url(valkey.url) as store:
        entry = await store.get(_key(user))
        assert entry is not None
        await store.set(_key(f"{user}-ghost"), entry)

        async def says_after(text: str, seconds_ago: int) -> bool:
            # Another marker, once noticed, has the node write the entry again: so once more.
            await date_marker(store, seconds_ago=seconds_ago)
            await store.delete(_key(user))
            listed = await tool(valkey.url, "who", user)
            assert listed.exit_code == 0
            return text in listed.stdout

        doubt = "the registry was emptied or did not answer a moment ago"
        missing = f"connected and not registered: {gateway.name}"
        for text, seconds_ago in ((doubt, 0), (missing, 60)):
            said = partial(says_after, text, seconds_ago)
            await eventually(said, text, timeout_seconds=30.0)
        ghost = await tool(valkey.url, "who", f"{user}-ghost")
    assert f"registered without a connection: {gateway.name}" in ghost.stdout
    assert ghost.exit_code == 3


async def date_marker(store: Redis, *, seconds_ago: int) -> None:
    """Let Redis have begun then: who is not found is unknown for the first seconds."""
    marker = await store.get("{pg-nodes}generation")
    assert isinstance(marker, bytes)
    now_seconds, _ = await store.time()
    made_us = (now_seconds - seconds_ago) * 1_000_000
    await store.set("{pg-nodes}generation", b"%s %d" % (marker.split()[0], made_us))


async def test_without_nodes_and_without_a_registry_each_command_says_so(
    own_valkey: RedisServer,
) -> None:
    nobody = await tool(own_valkey.url, "who", "u")
    assert (nobody.exit_code, "0 connections on 0 nodes" in nobody.stdout) == (3, True)
    drain = await tool(own_valkey.url, "drain", "gw-1")
    assert (drain.exit_code, "live nodes: none" in drain.stderr) == (1, True)
    top = await tool(own_valkey.url, "top", "--every", "0.2", "--count", "1")
    assert (top.exit_code, "no gateway is live" in top.stdout) == (0, True)
    assert "no processor is found" in top.stdout
    for words in (["who", "u"], ["kick", "u"], ["drain", "gw"], ["top"]):
        done = await tool("redis://127.0.0.1:1", *words)
        assert (done.exit_code, "Redis at 127.0.0.1:1" in done.stderr) == (1, True), done.stderr
    assert (await tool(own_valkey.url, "who", "a\nb")).exit_code == 2


# drain


async def test_a_drain_is_begun_once_and_hastened_only_on_demand(
    start_gateway: StartGateway, own_valkey: RedisServer, user: str
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url, drain_seconds=600)
    async with connect("ws-plain", gateway.port, user) as client:
        unknown = await tool(own_valkey.url, "drain", "gw-nowhere")
        assert (unknown.exit_code, f"live nodes: {gateway.name}" in unknown.stderr) == (1, True)
        early = await tool(own_valkey.url, "drain", gateway.name, "--now")
        assert (early.exit_code, gateway.readyz()) == (1, 200)
        for told in ("begun", "going on already"):
            done = await tool(own_valkey.url, "drain", gateway.name)
            assert (done.exit_code, done.stdout) == (
                0, f"{gateway.name}: {told}; pushgate top shows how it goes\n",
            ), done.stderr  # fmt: skip
        assert (gateway.readyz(), gateway.returncode) == (503, None)
        status = await status_of(gateway)
        assert (status["status"], 590 < status["drain_seconds"] <= 600) == ("draining", True)
        hastened = await tool(own_valkey.url, "drain", gateway.name, "--now", "--json")
        assert json.loads(hastened.stdout)["drain"] == "hastened"
        assert (await client.ended()).code == 1001
    assert await asyncio.to_thread(gateway.wait, 20.0) == 0


async def status_of(gateway: GatewayProcess) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, headers=SECRET) as http:
        answer = await http.get(f"http://127.0.0.1:{gateway.internal_port}/status")
    status: dict[str, Any] = answer.json()
    return status


# top


async def test_top_has_figures_of_gateways_and_processors(
    start_gateway: StartGateway,
    own_valkey: RedisServer,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    dead = start_gateway(redis_url=own_valkey.url)
    processor = ProcessorProcess(
        "top", redis_url=own_valkey.url, bootstrap=kafka.bootstrap, topic=topic, group=topic
    )
    processor.env["PUSHGATE_PROCESSOR_ADVERTISE_ADDRESS"] = f"127.0.0.1:{processor.port}"
    with processor:
        await asyncio.to_thread(dead.kill)
        async with connect("sse", gateway.port, user) as client:
            with running(own_valkey.url, "top", "--every", "0.3", "--json") as top:
                picture = await until_rates(top, lambda: sent(backend, topic, user, client))
        by_name = {each["name"]: each for each in picture["gateways"]}
        assert by_name[gateway.name]["connections"]["sse"] == 1
        assert (by_name[gateway.name]["status"], by_name[gateway.name]["remarks"]) == ("ready", [])
        assert by_name[dead.name]["status"] == "no answer"
        assert by_name[dead.name]["remarks"]
        [figures] = picture["processors"]
        assert (figures["status"], figures["lag_messages"]) == ("ready", 0)
        assert figures["forward_p99_seconds"] > 0
        assert picture["processors_without_port"] == 0
        await require_secret(processor)
        for command in ("who", "kick"):
            done = await tool(own_valkey.url, command, user)
            assert (done.exit_code, dead.name in done.stderr) == (1, True), done.stderr
    gone = await tool(own_valkey.url, "top", "--every", "0.2", "--count", "1")
    assert "no processor is found" in gone.stdout


async def sent(backend: AIOKafkaProducer, topic: str, user: str, client: Client) -> None:
    await publish(backend, topic, user, b"x")
    await take(client, 1)


async def until_rates(
    top: subprocess.Popen[str], act: Callable[[], Awaitable[None]]
) -> dict[str, Any]:
    """Give the first picture with rates of pushes and of outcomes, while `act` goes on."""
    async with asyncio.timeout(20):
        while True:
            await act()
            picture = await line_of(top.stdout)
            [figures] = picture["processors"]
            pushed = any(gateway["pushed_rate"] for gateway in picture["gateways"])
            if pushed and figures["outcome_rates"] and figures["outcome_rates"].get("delivered"):
                return picture


async def require_secret(processor: ProcessorProcess) -> None:
    """Check that the port for tools tells nobody anything without the secret."""
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{processor.port}/status"
        assert (await http.get(url)).status_code == 401
        assert (await http.get(url, headers={"Authorization": "Bearer x"})).status_code == 403
        told = (await http.get(url, headers=SECRET)).json()
    assert (told["kind"], told["status"]) == ("processor", "ready")
    assert "pushgate_processor_lag_messages" in told["metrics"]


@pytest.mark.parametrize("columns", [24, 80])
async def test_a_screen_of_top_fits_its_terminal(
    gateways: list[GatewayProcess], valkey: RedisServer, columns: int
) -> None:
    words = ("top", "--every", "0.2", "--count", "2")
    shown = await asyncio.to_thread(on_terminal, valkey.url, *words, columns=columns, rows=12)
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"\n", shown).decode()
    assert [line for line in plain.splitlines() if cell_len(line) > columns] == []
    assert re.search(r"\d+ gateways", plain)
    assert all(gateway.name in plain for gateway in gateways)
    # The other screen of the terminal is taken, and given back.
    assert (shown.count(b"\x1b[?1049h"), shown.count(b"\x1b[?1049l")) == (1, 1)


async def test_what_goes_on_outlives_a_silent_registry_and_ends_by_ctrl_c_or_a_closed_pipe(
    start_gateway: StartGateway, own_valkey: RedisServer, user: str
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    watch = ("audit", "--watch", "--every", "1", "--pause", "0", "--json")
    async with connect("sse", gateway.port, user), Redis.from_url(own_valkey.url) as store:
        with (
            running(own_valkey.url, "top", "--every", "0.2", "--json") as top,
            running(own_valkey.url, *watch) as audit,
        ):
            assert (await line_of(top.stdout))["gateways"]
            assert (await line_of(audit.stdout))["missing"] == []
            own_valkey.freeze()
            for tool_process in (top, audit):
                assert "Error: Redis at" in await text_of(tool_process.stderr)
            own_valkey.thaw()
            await store.delete(_key(user))

            async def missed() -> bool:
                missing = (await line_of(audit.stdout))["missing"]
                return bool(missing == [{"user": user, "node": gateway.name}])

            await eventually(missed, "the missing user is found")
            audit.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(audit.wait, 20) == 130
            assert top.stdout is not None
            top.stdout.close()  # as `head -1` does
            assert await asyncio.to_thread(top.wait, 20) == 0


async def line_of(pipe: IO[str] | None) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(await text_of(pipe))
    return line


async def text_of(pipe: IO[str] | None) -> str:
    assert pipe is not None
    async with asyncio.timeout(SECONDS):
        return await asyncio.to_thread(pipe.readline)
