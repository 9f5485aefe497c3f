"""The result of a check of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"  # work continues, but something needs attention
    PROBLEM = "problem"  # something does not work, or will not


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    what: str
    #: The command or setting that helps; None if nothing has to be done.
    fix: str | None = None


def ok(what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, what)


def warning(what: str, *, fix: str) -> Finding:
    """Return a finding that does not stop the work."""
    return Finding(Level.WARNING, what, fix)


def problem(what: str, *, fix: str) -> Finding:
    """Return a finding that something does not work."""
    return Finding(Level.PROBLEM, what, fix)
