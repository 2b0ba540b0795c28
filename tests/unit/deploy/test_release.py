"""deploy/release: what audits say, licences, and what a check of a release takes and refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from deploy.release import audit, licences
from deploy.release.audit import Report, of_npm_audit, of_pip_audit

ROOT = Path(__file__).parents[3]
SOUND: dict[str, Any] = {"name": "anyio", "version": "4.16.0", "vulns": []}
WEAK: dict[str, Any] = {
    "name": "redis",
    "version": "8.1.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["8.1.1"], "aliases": []}],
}
SKIPPED: dict[str, Any] = {"name": "click", "skip_reason": "not found"}


def pip_audit(*packages: dict[str, Any]) -> Report:
    return of_pip_audit("run.txt", json.dumps({"dependencies": packages, "fixes": []}))


def npm_audit(**weak: str) -> Report:
    answer = {
        "vulnerabilities": {n: {"name": n, "severity": s} for n, s in weak.items()},
        "metadata": {"dependencies": {"total": 70}},
    }
    return of_npm_audit("client", json.dumps(answer))


NPM_REFUSES = of_npm_audit("client", json.dumps({"statusCode": 405, "error": {"summary": ""}}))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (pip_audit(SOUND), "run.txt: 1 packages without a known weakness"),
        (pip_audit(SOUND, WEAK), "run.txt: WEAK: redis 8.1.0 PYSEC-2026-1 (mended in 8.1.1)"),
        (
            pip_audit(SOUND, SKIPPED),
            "run.txt: 1 packages without a known weakness; NO ANSWER for click",
        ),
        (pip_audit(SKIPPED), "run.txt: NO ANSWER for every package (1 are not known there)"),
        (of_pip_audit("run.txt", ""), "run.txt: NO ANSWER for every package"),
        (npm_audit(), "client: 70 packages without a known weakness"),
        (npm_audit(esbuild="high"), "client: WEAK: esbuild high"),
        (NPM_REFUSES, "client: NO ANSWER for every package (status 405)"),
        (of_npm_audit("client", ""), "client: NO ANSWER for every package"),
    ],
)
def test_an_audit_says_which_packages_were_looked_up(report: Report, said: str) -> None:
    assert str(report) == said


@pytest.mark.parametrize(
    ("reports", "status"),
    [
        ([pip_audit(SOUND), npm_audit()], 0),
        ([pip_audit(SOUND, SKIPPED), npm_audit()], audit.UNANSWERED),
        ([pip_audit(SOUND), NPM_REFUSES], audit.UNANSWERED),
        ([pip_audit(WEAK), NPM_REFUSES], audit.WEAK),
        ([pip_audit(SOUND), npm_audit(esbuild="high")], audit.WEAK),
    ],
)
def test_no_answer_is_no_clean_bill(reports: list[Report], status: int) -> None:
    assert audit.status(reports) == status


def test_the_audit_covers_every_lock_file() -> None:
    pip = {f"requirements/{path.name}" for path in (ROOT / "requirements").glob("*.txt")}
    # The others are parts of all.txt (tests/unit/test_lock.py).
    parts = {f"requirements/{name}.txt" for name in ("run", "tracing", "build")}
    assert set(audit.PYTHON_LOCKS) == pip - parts
    npm = subprocess.run(
        ["git", "ls-files", "*package-lock.json"], cwd=ROOT, check=True, capture_output=True
    )
    folders = [str(Path(line).parent) for line in npm.stdout.decode().splitlines()]
    assert audit.npm_locks() == sorted(folders)


def test_the_list_of_licences_is_what_the_packages_say() -> None:
    path = ROOT / "requirements" / "licences.md"
    assert licences.page() == path.read_text("utf-8"), "run make licences"


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT OR Apache-2.0"}, "MIT OR Apache-2.0"),
        ({"License-Expression": "MIT AND GPL-3.0-only"}, None),
        ({"License": "Apache 2"}, "Apache-2.0"),
        ({"License": "a page", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({}, None),
    ],
)  # fmt: skip
def test_a_licence_is_read_from_the_metadata_or_refused(
    fields: dict[str, str], licence: str | None
) -> None:
    package = Message()
    package["Name"] = "some-package"
    for field, text in fields.items():
        package[field] = text
    if licence is not None:
        assert licences._licence(package) == licence  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match="some-package"):
        licences._licence(package)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a release of two files with a signature, beside the list of its signers."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen: apt-get install openssh-client")
    folder = tmp_path_factory.mktemp("signed")

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    for name in ("key", "other"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
        key = (folder / f"{name}.pub").read_text()
        (folder / f"{name}.signers").write_text(f'pushgate namespaces="pushgate-release" {key}')
    release = folder / "release"
    release.mkdir()
    for name in ("pushgate.whl", "commit.txt"):
        (release / name).write_text(name)
    sums = subprocess.run(
        ["sha256sum", "pushgate.whl", "commit.txt"], cwd=release, check=True, capture_output=True
    )
    (release / "SHA256SUMS").write_bytes(sums.stdout)
    run(
        "ssh-keygen",
        "-Y",
        "sign",
        "-q",
        "-f",
        "key",
        "-n",
        "pushgate-release",
        "release/SHA256SUMS",
    )
    return folder


def verify(folder: Path, signers: str = "key.signers") -> subprocess.CompletedProcess[str]:
    command = [ROOT / "deploy" / "release" / "verify", folder / "release", folder / signers]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_release_as_it_was_signed_is_taken(signed: Path) -> None:
    done = verify(signed)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 files as they were signed")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda release: (release / "pushgate.whl").write_text("another"),
        lambda release: (release / "commit.txt").unlink(),
        lambda release: (release / "more.whl").write_text("more"),
        lambda release: (release / "SHA256SUMS").write_text(""),
        lambda release: (release / "SHA256SUMS.sig").unlink(),
    ],
    ids=["changed", "missing", "added", "no-hashes", "no-signature"],
)
def test_a_release_that_is_not_as_it_was_signed_is_refused(
    signed: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    spoil(copy / "release")
    done = verify(copy)
    assert done.returncode != 0
    assert "as they were signed" not in done.stdout


def test_a_release_that_somebody_else_has_signed_is_refused(signed: Path) -> None:
    done = verify(signed, "other.signers")
    assert done.returncode != 0
    assert "Could not verify signature" in done.stdout + done.stderr


def test_no_release_is_made_of_changes_that_are_not_committed(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "release" / "build"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "release" / "build", script)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    done = subprocess.run([script], check=False, capture_output=True, text=True)
    assert (done.returncode, "not committed" in done.stderr) == (1, True)
