"""The outcomes of images, as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict


class Alternative(TypedDict):
    """One of the most probable classes of an image."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The outcomes of consecutive images, as one column per field, all of the same length.

    An image has a label with its confidence, or an error code with its detail. They are columns because one
    object per image would take a twentieth of a worker's time for small images.
    """

    names: Sequence[str]
    labels: Sequence[str | None]
    confidences: Sequence[float | None]
    #: Both are None if no image has an error, as in nearly all chunks.
    errors: Sequence[str | None] | None = None
    details: Sequence[str | None] | None = None
    #: The most probable classes of each image, the label first; None if no job asked for them.
    alternatives: Sequence[list[Alternative] | None] | None = None

    @property
    def failed(self) -> int:
        """Return how many images got an error."""
        return 0 if self.errors is None else len(self.errors) - self.errors.count(None)

    @property
    def codes(self) -> Counter[str | None]:
        """Return how many images got each error code; those without an error count under None."""
        return Counter({None: len(self)}) if self.errors is None else Counter(self.errors)

    def limited_to(self, top_k: int | None) -> Outcomes:
        """Return the same outcomes with at most `top_k` alternatives per image; without any if it is None."""
        if self.alternatives is None:
            return self
        if top_k is None:
            return replace(self, alternatives=None)
        return replace(self, alternatives=[each and each[:top_k] for each in self.alternatives])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, part: slice) -> Outcomes:
        errors = None if self.errors is None else self.errors[part]
        details = None if self.details is None else self.details[part]
        alternatives = None if self.alternatives is None else self.alternatives[part]
        return Outcomes(
            self.names[part], self.labels[part], self.confidences[part], errors, details, alternatives
        )
