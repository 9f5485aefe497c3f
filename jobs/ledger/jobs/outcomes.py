"""The results of images: one as a row, or the outcomes of consecutive images as columns.

A column of a result has one name everywhere: a field of `Prediction`, a column of the table `predictions`,
and a field of `Outcomes`. Recording, export and the HTTP API find it by this name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypedDict, get_args, get_type_hints


class Alternative(TypedDict):
    """One of the most probable classes of an image."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The one recorded result of an image: a label with its confidence, or an error."""

    index: int
    name: str
    label: str | None
    confidence: float | None
    #: An `ErrorCode`, or the code of a newer worker.
    error: str | None
    detail: str | None
    model: str
    #: The most probable classes, the label first, if the job asked for them.
    alternatives: list[Alternative] | None = None


class ResultColumn(NamedTuple):
    """A column of a result, as a field of `Prediction` declares it."""

    name: str
    type: Any  # int, str, float, bool, or a list
    nullable: bool


def _result_columns() -> tuple[ResultColumn, ...]:
    hints = get_type_hints(Prediction)
    nullable = {name: type(None) in get_args(hint) for name, hint in hints.items()}
    return tuple(
        ResultColumn(name, get_args(hint)[0] if nullable[name] else hint, nullable[name])
        for name, hint in hints.items()
    )


#: The columns of a result, in their order in exported files.
RESULT_COLUMNS: Final = _result_columns()

#: Their names.
COLUMN_NAMES: Final = tuple(column.name for column in RESULT_COLUMNS)

#: Return the values of a prediction's columns.
values_of: Final = attrgetter(*COLUMN_NAMES)


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as a JSON object."""
    return dict(zip(COLUMN_NAMES, values_of(prediction), strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The outcomes of consecutive images, as one column per field, all of the same length.

    An image has a label with its confidence, or an error code with its detail. They are columns because one
    object per image would take a twentieth of a worker's time for small images.
    """

    name: Sequence[str]
    label: Sequence[str | None]
    confidence: Sequence[float | None]
    #: Both are None if no image has an error, as in nearly all chunks.
    error: Sequence[str | None] | None = None
    detail: Sequence[str | None] | None = None
    #: The most probable classes of each image, the label first; None if no job asked for them.
    alternatives: Sequence[list[Alternative] | None] | None = None

    @property
    def failed(self) -> int:
        """Return how many images got an error."""
        return 0 if self.error is None else len(self.error) - self.error.count(None)

    @property
    def codes(self) -> Counter[str | None]:
        """Return how many images got each error code; those without an error count under None."""
        return Counter({None: len(self)}) if self.error is None else Counter(self.error)

    def has(self, column: str) -> bool:
        """Return whether any image has a value in this column."""
        values = getattr(self, column)
        return values is not None and any(value is not None for value in values)

    def limited_to(self, top_k: int | None) -> Outcomes:
        """Return the same outcomes with at most `top_k` alternatives per image; without any if it is None."""
        if self.alternatives is None:
            return self
        if top_k is None:
            return replace(self, alternatives=None)
        return replace(self, alternatives=[each and each[:top_k] for each in self.alternatives])

    def __len__(self) -> int:
        return len(self.name)

    def __getitem__(self, part: slice) -> Outcomes:
        parts: list[Any] = [column and column[part] for column in _columns_of(self)]
        return Outcomes(*parts)


_columns_of: Final = attrgetter(*(each.name for each in fields(Outcomes)))
