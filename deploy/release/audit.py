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
NPM_LOCKS: Final = ("client", "tests/support/compressing_proxy", "tests/support/judges")
WEAK: Final = 1
UNANSWERED: Final = 3


@dataclass(frozen=True, slots=True)
class Report:
    """The answers for one lock file.

    `weak` has a text for each known weakness, `unanswered` the packages without an answer, or the
    fault that left the whole file without one.
    """

    lock: str
    looked_up: int
    weak: tuple[str, ...]
    unanswered: tuple[str, ...]

    def __str__(self) -> str:
        if self.weak:
            said = f"WEAK: {'; '.join(self.weak)}"
        elif self.looked_up:
            said = f"{self.looked_up} packages without a known weakness"
        else:
            said = "nothing was looked up"
        if self.unanswered:
            said += f"; NO ANSWER for {', '.join(self.unanswered)}"
        return f"{self.lock}: {said}"


def of_pip_audit(lock: str, output: str) -> Report:
    """Read what `pip-audit --format json` has printed for a lock file."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        return Report(lock, 0, (), ("all packages",))
    asked = [package for package in packages if "skip_reason" not in package]
    return Report(
        lock,
        looked_up=len(asked),
        weak=tuple(_weaknesses(asked)),
        unanswered=tuple(package["name"] for package in packages if "skip_reason" in package),
    )


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
    except (ValueError, KeyError):
        return Report(lock, 0, (), ("all packages",))
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
    """Return what a command prints; its exit status says no more than its output."""
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return ""
    return done.stdout


def main() -> int:
    """Print a line for each lock file; return the exit status."""
    reports = []
    for audit, locks in ((_pip_audit, PYTHON_LOCKS), (_npm_audit, NPM_LOCKS)):
        for lock in locks:
            report = audit(lock)
            reports.append(report)
            sys.stdout.write(f"{report}\n")
            sys.stdout.flush()
    return status(reports)


if __name__ == "__main__":
    sys.exit(main())
