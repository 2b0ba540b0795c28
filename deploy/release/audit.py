"""Known weaknesses of the locked packages, as their registries have them: `make audit`.

Asks with pip-audit and `npm audit`, one line a lock file. Exit status: 0 where every package was
looked up and none has a known weakness; 1 where one has; 3 where a registry has not answered for
some packages, and no other is weak. A package that was not looked up never counts as sound.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PYTHON_LOCKS: Final = ("requirements/all.txt", "requirements/release.txt")
#: Folders of what is installed, whose lock files are other people's.
_INSTALLED: Final = frozenset({"node_modules", ".venv"})
EVERY_PACKAGE: Final = "every package"
WEAK: Final = 1
UNANSWERED: Final = 3


def npm_locks() -> list[str]:
    """Return the folders with a lock file of npm's, from the project's root."""
    found = (path.parent.relative_to(ROOT) for path in ROOT.rglob("package-lock.json"))
    return sorted(str(folder) for folder in found if not _INSTALLED & set(folder.parts))


@dataclass(frozen=True, slots=True)
class Report:
    """The answers for one lock file.

    `weak` has a text for each known weakness, `unanswered` the packages without an answer.
    """

    lock: str
    looked_up: int
    weak: tuple[str, ...]
    unanswered: tuple[str, ...]

    def __str__(self) -> str:
        said = []
        if self.weak:
            said.append(f"WEAK: {', '.join(self.weak)}")
        elif self.looked_up:
            said.append(f"{self.looked_up} packages without a known weakness")
        if self.unanswered:
            said.append(f"NO ANSWER for {', '.join(self.unanswered)}")
        return f"{self.lock}: {'; '.join(said)}"


def of_pip_audit(lock: str, output: str) -> Report:
    """Read what `pip-audit --format json` has printed for a lock file."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        return Report(lock, 0, (), (EVERY_PACKAGE,))
    asked = [package for package in packages if "skip_reason" not in package]
    skipped = tuple(package["name"] for package in packages if "skip_reason" in package)
    if not asked:
        return Report(lock, 0, (), (f"{EVERY_PACKAGE} ({len(skipped)} are not known there)",))
    return Report(lock, len(asked), tuple(_weaknesses(asked)), skipped)


def _weaknesses(packages: Sequence[dict[str, Any]]) -> Iterator[str]:
    for package in packages:
        for weakness in package["vulns"]:
            fixed = " or ".join(weakness["fix_versions"]) or "no version yet"
            yield f"{package['name']} {package['version']} {weakness['id']} (mended in {fixed})"


def of_npm_audit(lock: str, output: str) -> Report:
    """Read what `npm audit --json` has printed for a lock file."""
    try:
        answer = json.loads(output)
        looked_up = answer["metadata"]["dependencies"]["total"]
        weak = answer["vulnerabilities"].values()
    except ValueError:
        return Report(lock, 0, (), (EVERY_PACKAGE,))
    except KeyError:
        return Report(lock, 0, (), (f"{EVERY_PACKAGE} (status {answer.get('statusCode')})",))
    named = tuple(f"{package['name']} {package['severity']}" for package in weak)
    return Report(lock, looked_up, named, ())


def status(reports: Sequence[Report]) -> int:
    """Return the exit status for these reports."""
    if any(report.weak for report in reports):
        return WEAK
    return UNANSWERED if any(report.unanswered for report in reports) else 0


def _pip_audit(lock: str) -> Report:
    pip_audit = Path(sys.executable).with_name("pip-audit")
    options = ("--progress-spinner", "off", "--format", "json", "--disable-pip", "--require-hashes")
    return of_pip_audit(lock, _output(str(pip_audit), *options, "--requirement", lock))


def _npm_audit(lock: str) -> Report:
    return of_npm_audit(lock, _output("npm", "--prefix", lock, "audit", "--json"))


def _output(*command: str) -> str:
    """Return what a command prints; its exit status says no more than its output.

    Its errors are shown where it has printed nothing else: beside a report, pip-audit's say that
    there is no weakness where nothing was looked up.
    """
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return ""
    if not done.stdout.strip():
        sys.stderr.write(done.stderr)
    return done.stdout


def main() -> int:
    """Print a line for each lock file; return the exit status."""
    reports = []
    for audit, locks in ((_pip_audit, PYTHON_LOCKS), (_npm_audit, npm_locks())):
        for lock in locks:
            report = audit(lock)
            reports.append(report)
            sys.stdout.write(f"{report}\n")
            sys.stdout.flush()
    return status(reports)


if __name__ == "__main__":
    sys.exit(main())
