"""`pushgate completion` makes a real shell complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pushgate.cli import cli


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with a `pushgate`."""
    script = tmp_path / "pushgate"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pushgate "$@"\n')
    script.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_bash_completes_commands_and_flags(path: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    script = """
        eval "$(pushgate completion bash)"
        COMP_WORDS=(pushgate se) COMP_CWORD=1
        _pushgate_completion pushgate; echo "${COMPREPLY[@]}"
        COMP_WORDS=(pushgate listen --tr) COMP_CWORD=2 COMPREPLY=()
        _pushgate_completion pushgate; echo "${COMPREPLY[@]}"
    """
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [bash, "-c", script], env=os.environ | {"PATH": path, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["send", "--transport"], done.stderr


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "#compdef pushgate"), ("fish", "complete ")])
def test_other_shells_have_a_script_too(shell: str, mark: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert (result.exit_code, mark in result.output) == (0, True)
    assert "_PUSHGATE_COMPLETE" in result.output


def test_another_shell_is_wrong_usage() -> None:
    assert CliRunner().invoke(cli, ["completion", "csh"]).exit_code == 2
