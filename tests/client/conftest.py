"""The package in client/, built once for all of its tests."""

from pathlib import Path

import pytest

from tests.client.package import ROOT, run
from tests.support.npm import install


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a copy of the package with pinned tools; skip where that can't be done."""
    folder = tmp_path_factory.mktemp("package") / "client"
    if missing := install(ROOT / "client", folder):
        pytest.skip(missing)
    (folder.parent / "gateway").mkdir()
    run(folder, "npm", "run", "build")
    return folder
