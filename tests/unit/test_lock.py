"""The lock files: whole, with hashes, without addresses, and what the project asks for."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = ("all.txt", "run.txt", "tracing.txt", "build.txt", "release.txt")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text("utf-8").splitlines()
    return {match[1].lower(): match[2] for line in lines if (match := PIN.match(line))}


def project() -> dict[str, list[str]]:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = read["project"]["optional-dependencies"]
    return {
        "run.txt": read["project"]["dependencies"],
        "tracing.txt": [*read["project"]["dependencies"], *extras["tracing"]],
        "build.txt": [*read["dependency-groups"]["build"], *read["build-system"]["requires"]],
        "release.txt": read["dependency-groups"]["release"],
        "all.txt": [
            *read["project"]["dependencies"],
            *(line for lines in extras.values() for line in lines),
            *read["dependency-groups"]["build"],
        ],
    }


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_of_the_project_is_locked_within_its_bounds(name: str) -> None:
    locked = pins(name)
    for line in project()[name]:
        requirement = Requirement(line)
        version = locked[requirement.name.lower().replace("_", "-")]
        assert version in requirement.specifier, f"{line} is locked as {version}: run make lock"


@pytest.mark.parametrize("name", FILES)
def test_every_pin_has_hashes_and_no_line_is_anything_else(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(
            r"[a-z0-9._-]+==[^ ]+( ; [a-z_]+ [=!<>]+ '[A-Za-z0-9.]+'( (and|or) "
            r"[a-z_]+ [=!<>]+ '[A-Za-z0-9.]+')*)?( +--hash=sha256:[0-9a-f]{64})+",
            line,
        ), line


def test_the_files_agree() -> None:
    everything = pins("all.txt")
    for name in ("run.txt", "tracing.txt", "build.txt"):
        assert pins(name).items() <= everything.items()


@pytest.mark.parametrize(
    "name", ["client", "tests/support/compressing_proxy", "tests/support/judges"]
)
def test_every_package_from_npm_has_a_hash_and_no_address(name: str) -> None:
    manifest = json.loads((ROOT / name / "package.json").read_text("utf-8"))
    lock = json.loads((ROOT / name / "package-lock.json").read_text("utf-8"))
    locked, *packages = lock["packages"].values()
    for kind in ("dependencies", "devDependencies"):
        assert locked.get(kind) == manifest.get(kind)
    assert packages
    assert all("integrity" in package and "resolved" not in package for package in packages)
