"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"  # work goes on, but something is not as it should be
    PROBLEM = "problem"  # something does not work, or will not


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's answer."""

    area: str
    level: Level
    what: str
    #: The command or setting that helps; None where nothing has to be done.
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Area:
    """What a group of checks is about, and findings about it."""

    name: str

    def ok(self, what: str) -> Finding:
        """All is well."""
        return Finding(self.name, Level.OK, what)

    def warning(self, what: str, *, fix: str) -> Finding:
        """Work goes on all the same."""
        return Finding(self.name, Level.WARNING, what, fix)

    def problem(self, what: str, *, fix: str) -> Finding:
        """Something does not work."""
        return Finding(self.name, Level.PROBLEM, what, fix)


def duration(seconds: float) -> str:
    """How long, in words."""
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"
