"""Records that Python's clients refuse to write, by kcat."""

from __future__ import annotations

import shutil
import subprocess

import pytest


def kcat(bootstrap: str, topic: str, *flags: str | bytes, line: bytes) -> None:
    """Publish one record to partition 0; skip the test where there is no kcat."""
    binary = shutil.which("kcat")
    if binary is None:
        pytest.skip("no kcat: apt-get install kcat")
    command = [binary, "-P", "-b", bootstrap, "-t", topic, "-p", "0", *flags]
    subprocess.run(command, input=line + b"\n", check=True, capture_output=True, timeout=20)
