"""The package in client/: its own tests, its types, and the file that gateways serve of it."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.npm import install

ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = 60.0


def run(folder: Path, *command: str) -> str:
    """Run a command of Node.js; give what it has printed, after which it has succeeded."""
    done = subprocess.run(
        command,
        cwd=folder,
        check=False,
        timeout=SECONDS,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-8_000:]
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a copy of the package with pinned tools; skip where that can't be done."""
    folder = tmp_path_factory.mktemp("package") / "client"
    if missing := install(ROOT / "client", folder):
        pytest.skip(missing)
    (folder.parent / "gateway").mkdir()
    run(folder, "npm", "run", "build")
    return folder


def test_the_script_of_gateways_is_built_from_the_package(package: Path) -> None:
    built = (package.parent / "gateway/pushgate.js").read_bytes()
    committed = (ROOT / "gateway/pushgate.js").read_bytes()
    assert built == committed, "run npm ci and npm run build in client/, and commit the file"


def test_a_build_that_is_too_large_fails(package: Path, tmp_path: Path) -> None:
    build = (package / "build.mjs").read_text("utf-8")
    small = re.sub(r"MOST_GZIPPED_BYTES = .+;", "MOST_GZIPPED_BYTES = 1024;", build)
    (package / "small.mjs").write_text(small, "utf-8")
    with pytest.raises(AssertionError, match=r"pushgate\.js may have 1024 bytes gzipped"):
        run(package, "node", "small.mjs", str(tmp_path / "pushgate.js"))


def test_the_tests_of_the_package_pass(package: Path) -> None:
    run(package, "npm", "test")


def test_its_types_hold_and_it_can_be_imported(package: Path) -> None:
    run(package, "npm", "run", "check")
