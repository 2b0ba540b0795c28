"""Findings of `pushgate doctor`, looked through by tests."""

from collections.abc import Iterable

from pushgate.doctor.finding import Finding, Severity


def bad(findings: Iterable[Finding]) -> list[Finding]:
    """Give the warnings and faults, each of which says why it matters and what to do."""
    chosen = [each for each in findings if each.severity in {Severity.WARNING, Severity.FAULT}]
    assert all(each.why and each.cure for each in chosen)
    return chosen


def only(findings: Iterable[Finding]) -> Finding:
    """Give the only warning or fault."""
    (finding,) = bad(findings)
    return finding
