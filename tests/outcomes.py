"""Outcomes of single images, as tests write and read them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import NamedTuple

from jobs.outcomes import Outcomes


class Outcome(NamedTuple):
    """The outcome of one image: a label with its confidence, or an error code with its detail."""

    name: str
    label: str | None
    confidence: float | None
    error: str | None = None
    detail: str | None = None


def to_columns(outcomes: Iterable[Outcome] | Outcomes) -> Outcomes:
    """Return these outcomes as columns."""
    if isinstance(outcomes, Outcomes):
        return outcomes
    outcomes = list(outcomes)
    if not outcomes:
        return Outcomes((), (), ())
    names, labels, confidences, errors, details = zip(*outcomes, strict=True)
    return Outcomes(names, labels, confidences, *((errors, details) if any(errors) else (None, None)))


def to_rows(outcomes: Outcomes) -> list[Outcome]:
    """Return columns as single outcomes."""
    errors, details = outcomes.errors or repeat(None), outcomes.details or repeat(None)
    rows = zip(outcomes.names, outcomes.labels, outcomes.confidences, errors, details, strict=False)
    return [Outcome(*row) for row in rows]
