"""Outcomes of single images, as tests write and read them."""

from __future__ import annotations

from collections.abc import Iterable
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
    required, optional = 3, list(zip(*outcomes, strict=True))
    return Outcomes(*optional[:required], *(each if any(each) else None for each in optional[required:]))


def to_rows(outcomes: Outcomes) -> list[Outcome]:
    """Return columns as single outcomes."""
    columns = [getattr(outcomes, name) for name in Outcome._fields]
    rows = zip(*(repeat(None) if each is None else each for each in columns), strict=False)
    return [Outcome(*row) for row in rows]


def best(*labels: str) -> list[Alternative]:
    """Return these classes as alternatives, each half as probable as the one before."""
    return [{"label": label, "confidence": 0.5**place} for place, label in enumerate(labels, 1)]
