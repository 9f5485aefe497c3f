"""The outcomes of images, as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


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

    def __getitem__(self, part: slice) -> Outcomes:
        errors = None if self.errors is None else self.errors[part]
        details = None if self.details is None else self.details[part]
        return Outcomes(self.names[part], self.labels[part], self.confidences[part], errors, details)
