"""What a check has found: what, why it matters, and what to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """How bad a finding is, the worst last."""

    OK = "all is well"
    NOTE = "good to know, or could not be looked at"
    WARNING = "works now, and fails or loses messages in a foreseeable case"
    FAULT = "something does not work, or messages are lost, until an operator acts"

    @property
    def word(self) -> str:
        """The severity as the command prints it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report.

    `subject` is the part looked at, such as `redis`. `why` says why the finding matters, `cure` how
    to mend it, with the setting's name; both are empty where all is well, and there alone.
    """

    severity: Severity
    subject: str
    what: str
    why: str = ""
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Makes the findings of one subject."""

    name: str

    def ok(self, what: str) -> Finding:
        """Return a finding that all is well."""
        return Finding(Severity.OK, self.name, what)

    def note(self, what: str, *, why: str, cure: str) -> Finding:
        """Return a finding that is good to know."""
        return Finding(Severity.NOTE, self.name, what, why, cure)

    def warning(self, what: str, *, why: str, cure: str) -> Finding:
        """Return a finding of what fails in a foreseeable case."""
        return Finding(Severity.WARNING, self.name, what, why, cure)

    def fault(self, what: str, *, why: str, cure: str) -> Finding:
        """Return a finding of what does not work."""
        return Finding(Severity.FAULT, self.name, what, why, cure)
