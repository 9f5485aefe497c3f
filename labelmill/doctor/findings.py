"""What a check of the doctor returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"  # work continues, but something is not as it should be
    PROBLEM = "problem"  # something does not work, or will not


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    area: str
    level: Level
    what: str
    #: The command or setting that helps; None if nothing has to be done.
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Area:
    """The name of a group of checks, for its findings."""

    name: str

    def ok(self, what: str) -> Finding:
        """Return a finding that all is well."""
        return Finding(self.name, Level.OK, what)

    def warning(self, what: str, *, fix: str) -> Finding:
        """Return a finding that does not stop the work."""
        return Finding(self.name, Level.WARNING, what, fix)

    def problem(self, what: str, *, fix: str) -> Finding:
        """Return a finding that something does not work."""
        return Finding(self.name, Level.PROBLEM, what, fix)


def duration(seconds: float) -> str:
    """Return a length of time in words."""
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"
