"""The units of deploy/systemd, by systemd's own checks; systemd itself does not run here."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import click
import pytest

from pushgate.cli import cli
from pushgate.environment import known_variables
from pushgate.settings import GatewayCommandSettings, ProcessorCommandSettings
from tests.support.kubernetes import DEPLOY

SYSTEMD: Final = DEPLOY / "systemd"
GATEWAY: Final = SYSTEMD / "pushgate-gateway@.service"
PROCESSOR: Final = SYSTEMD / "pushgate-processor@.service"
UNITS: Final = pytest.mark.parametrize("unit", [GATEWAY, PROCESSOR], ids=lambda unit: unit.stem)
VARIABLE: Final = re.compile(r"(PUSHGATE_[A-Z_]+)=(\S*)")
#: What `systemd-analyze security` counts: 10 is unsafe, 0 can do nothing.
MOST_EXPOSED: Final = 1.5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give the root of a system with the units, the program and the targets they name."""
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    for unit in (GATEWAY, PROCESSOR):
        shutil.copy(unit, tmp_path / "etc/systemd/system" / unit.name)
    program = tmp_path / "opt/pushgate/bin/pushgate"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for name in ("sysinit", "basic", "shutdown", "network-online", "multi-user"):
        (units / f"{name}.target").write_text("[Unit]\nDescription=A target\n")
    return tmp_path


def analyzed(*arguments: str | Path) -> str:
    """Return what systemd-analyze complains of; skips the test where it is not installed."""
    if shutil.which("systemd-analyze") is None:
        assert os.environ.get("PUSHGATE_REQUIRE_SYSTEMD") != "1", "systemd-analyze is missing"
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    done = subprocess.run(
        ["systemd-analyze", *arguments], check=False, capture_output=True, text=True
    )
    return done.stderr if done.returncode == 0 else f"{done.returncode}: {done.stderr}"


@UNITS
def test_systemd_finds_nothing_to_say(unit: Path, root: Path) -> None:
    instance = unit.name.replace("@", "@01")
    assert analyzed("verify", "--man=no", f"--root={root}", instance) == ""


@UNITS
def test_units_can_do_no_more_than_their_job(unit: Path, root: Path) -> None:
    instance = unit.name.replace("@", "@01")
    bound = f"--threshold={MOST_EXPOSED * 10:.0f}"
    assert analyzed("security", "--offline=yes", bound, f"--root={root}", instance) == ""


def value(unit: Path, name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)
    return str(found)


def variables(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#") for line in text.splitlines() if "PUSHGATE_" in line]
    return {name: value for line in lines for name, value in VARIABLE.findall(line)}


def of_service(unit: Path, own: str) -> dict[str, str]:
    """Return the variables of instance 01, with secrets filled in."""
    lines = re.findall(r"^Environment=(.*)$", unit.read_text(), re.MULTILINE)
    settings = variables("\n".join(lines).replace("%i", "01"))
    for file in ("pushgate.env", own):
        settings |= variables((SYSTEMD / file).read_text())
    secrets = {name for name, value in settings.items() if not value}
    assert secrets <= {"PUSHGATE_INTERNAL_SECRET", "PUSHGATE_JWT_SECRET"}
    return settings | dict.fromkeys(secrets, "a secret of thirty-two bytes or more")


def test_a_gateway_starts_with_the_files_and_has_time_to_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = of_service(GATEWAY, "gateway.env")
    assert given.keys() <= known_variables()
    for name, setting in given.items():
        monkeypatch.setenv(name, setting)
    settings = GatewayCommandSettings.model_validate({})
    assert (settings.port, settings.internal_port) == (8001, 8101)
    assert float(value(GATEWAY, "TimeoutStopSec")) >= settings.drain_seconds + 10
    assert value(GATEWAY, "KillMode") == "mixed"


def test_a_gateway_tells_systemd_how_it_is_and_is_reloaded_with_the_files_of_now() -> None:
    assert (value(GATEWAY, "Type"), value(GATEWAY, "NotifyAccess")) == ("notify", "all")
    program, *words = value(GATEWAY, "ExecReload").split()
    assert program == value(GATEWAY, "ExecStart").split()[0]
    reload = cli.get_command(click.Context(cli), words[0])
    assert reload is not None
    assert reload.make_context("reload", words[1:]).params["takes_environment"]
    folder = value(GATEWAY, "RuntimeDirectory")
    taken_over_at = of_service(GATEWAY, "gateway.env")["PUSHGATE_TAKEOVER_SOCKET"]
    assert Path(taken_over_at).parent == Path("%t", folder.replace("%i", "01"))


def test_a_processor_starts_with_the_files_and_has_time_to_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = of_service(PROCESSOR, "processor.env")
    assert given.keys() <= known_variables()
    assert "PUSHGATE_JWT_SECRET" not in given
    for name, setting in given.items():
        monkeypatch.setenv(name, setting)
    assert ProcessorCommandSettings.model_validate({}).processor_port == 8201
    assert float(value(PROCESSOR, "TimeoutStopSec")) > 25


def test_sysctls_are_names_of_the_kernel() -> None:
    text = (SYSTEMD / "sysctl.conf").read_text()
    names = re.findall(r"^-?([a-z0-9_.]+) = ", text, re.MULTILINE)
    assert len(names) == 4
    # Those with a leading - may be missing.
    required = re.findall(r"^([a-z0-9_.]+) = ", text, re.MULTILINE)
    assert all(Path("/proc/sys", *name.split(".")).exists() for name in required)
