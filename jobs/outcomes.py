"""Outcomes of images: one of them, and many as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload


class Outcome(NamedTuple):
    """The outcome of one image: a label with its confidence, or an error code with its detail."""

    name: str
    label: str | None
    confidence: float | None
    error: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes(Sequence[Outcome]):
    """The outcomes of consecutive images, as one column per field, all of the same length.

    They are columns because one object per image would take a twentieth of a worker's time for small images.
    """

    names: Sequence[str]
    labels: Sequence[str | None]
    confidences: Sequence[float | None]
    #: Both are None if no image has an error, as in nearly all chunks.
    errors: Sequence[str | None] | None = None
    details: Sequence[str | None] | None = None

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Outcomes:
        """Return these outcomes as columns."""
        if isinstance(outcomes, Outcomes):
            return outcomes
        outcomes = list(outcomes)
        if not outcomes:
            return cls((), (), ())
        names, labels, confidences, errors, details = zip(*outcomes, strict=True)
        return cls(names, labels, confidences, *((errors, details) if any(errors) else (None, None)))

    @property
    def failed(self) -> int:
        """Return how many images got an error."""
        return 0 if self.errors is None else len(self.errors) - self.errors.count(None)

    @property
    def codes(self) -> Counter[str | None]:
        """Return how many images got each error code; those without an error count under None."""
        return Counter({None: len(self)}) if self.errors is None else Counter(self.errors)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Outcome: ...
    @overload
    def __getitem__(self, place: slice) -> Outcomes: ...
    def __getitem__(self, place: int | slice) -> Outcome | Outcomes:
        if isinstance(place, slice):
            errors = None if self.errors is None else self.errors[place]
            details = None if self.details is None else self.details[place]
            return Outcomes(self.names[place], self.labels[place], self.confidences[place], errors, details)
        error = None if self.errors is None else self.errors[place]
        detail = None if self.details is None else self.details[place]
        return Outcome(self.names[place], self.labels[place], self.confidences[place], error, detail)
