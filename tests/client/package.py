"""The package in client/, copied and built: what its tests have in common."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = 60.0


def run(folder: Path, *command: str, env: Mapping[str, str] | None = None) -> str:
    """Run a command of Node.js; give what it has printed, after which it has succeeded."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | (env or {}),
        check=False,
        timeout=SECONDS,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-8_000:]
    return done.stdout
