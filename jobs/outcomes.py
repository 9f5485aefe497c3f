"""What became of images: one of them, and many by columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload


class Outcome(NamedTuple):
    """What became of one image: a label with its confidence, or an error code with its detail."""

    name: str
    label: str | None
    confidence: float | None
    error: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes(Sequence[Outcome]):
    """What became of images that follow one another: a column for each field, all of one length.

    By columns since they are as many as the images: to make an object of each, look at it again and take it
    apart costs a twentieth of all that a worker does for a small image.
    """

    names: Sequence[str]
    labels: Sequence[str | None]
    confidences: Sequence[float | None]
    #: None, both, where no image has an error, as in nearly all chunks.
    errors: Sequence[str | None] | None = None
    details: Sequence[str | None] | None = None

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Outcomes:
        """The same by columns."""
        if isinstance(outcomes, Outcomes):
            return outcomes
        outcomes = list(outcomes)
        if not outcomes:
            return cls((), (), ())
        names, labels, confidences, errors, details = zip(*outcomes, strict=True)
        return cls(names, labels, confidences, *((errors, details) if any(errors) else (None, None)))

    @property
    def failed(self) -> int:
        """How many images got an error."""
        return 0 if self.errors is None else len(self.errors) - self.errors.count(None)

    @property
    def codes(self) -> Counter[str | None]:
        """How many images got each error, and how many got none."""
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
