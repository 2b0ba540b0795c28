"""Scripts for Node.js with packages from npm that their lock file pins."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

INSTALL_SECONDS: Final = 60.0


def install(sources: Path, folder: Path) -> str:
    """Copy a folder with a lock file to `folder`, and install the packages there.

    Returns what is missing for that, to skip with; empty where nothing is. AssertionError instead
    where PUSHGATE_REQUIRE_NPM is 1.
    """
    shutil.copytree(
        sources, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "dist")
    )
    missing = _install_packages(folder)
    assert not missing or os.environ.get("PUSHGATE_REQUIRE_NPM") != "1", missing
    return missing


def _install_packages(folder: Path) -> str:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "needs node and npm, which are not installed: apt-get install nodejs npm"
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, timeout=INSTALL_SECONDS
        )
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"needs packages from npm, which could not be installed: {last_line}"
    except subprocess.TimeoutExpired:
        return f"needs packages from npm, which did not come in {INSTALL_SECONDS:g} s"
    return ""
