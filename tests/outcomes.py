"""Outcomes of single images, as tests write and read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from typing import NamedTuple

from jobs.ledger.jobs.outcomes import Alternative, Outcomes


class Outcome(NamedTuple):
    """The outcome of one image: a label with its confidence, or an error code with its detail."""

    name: str
    label: str | None
    confidence: float | None
    error: str | None = None
    detail: str | None = None
    alternatives: list[Alternative] | None = None


def to_columns(outcomes: Iterable[Outcome] | Outcomes) -> Outcomes:
    """Return these outcomes as columns."""
    if isinstance(outcomes, Outcomes):
        return outcomes
    outcomes = list(outcomes)
    if not outcomes:
        return Outcomes((), (), ())
    names, labels, confidences, errors, details, alternatives = zip(*outcomes, strict=True)
    columns = Outcomes(names, labels, confidences, *((errors, details) if any(errors) else (None, None)))
    return replace(columns, alternatives=alternatives) if any(alternatives) else columns


def to_rows(outcomes: Outcomes) -> list[Outcome]:
    """Return columns as single outcomes."""
    others = (outcomes.errors, outcomes.details, outcomes.alternatives)
    columns = [each or repeat(None) for each in others]
    rows = zip(outcomes.names, outcomes.labels, outcomes.confidences, *columns, strict=False)
    return [Outcome(*row) for row in rows]


def best(*labels: str) -> list[Alternative]:
    """Return these classes as alternatives, each half as probable as the one before."""
    return [{"label": label, "confidence": 0.5**place} for place, label in enumerate(labels, 1)]
