"""Findings of `pushgate doctor`, looked through by tests."""

from collections.abc import Iterable

from pushgate.doctor.finding import Finding, Severity


def bad(findings: Iterable[Finding]) -> list[Finding]:
    """Give the warnings and faults. Each finding that is not ok says why, and what to do."""
    given = list(findings)
    assert all((each.severity is Severity.OK) != bool(each.why and each.cure) for each in given)
    return [each for each in given if each.severity in {Severity.WARNING, Severity.FAULT}]


def only(findings: Iterable[Finding]) -> Finding:
    """Give the only warning or fault."""
    (finding,) = bad(findings)
    return finding
