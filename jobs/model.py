"""The model: an immutable trained version, and how an image becomes its input.

The input spec is stored with the model, so that training, evaluation and prediction cannot diverge.
`worker.predicting.decode` implements it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from jobs.errors import UserError

#: Of more classes than this, a message names only the first.
MAX_LISTED_CLASSES: Final = 10

Mode = Literal["L", "RGB"]
Resampling = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Invert = Literal["never", "always", "dark_on_light"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an image becomes the model's input: uint8 of shape (height, width), or (height, width, 3) for RGB.

    The steps, in this order: rotate the image as its EXIF orientation says; composite transparency over
    white; convert to `mode`; resize to `width` x `height` pixels with `resampling`; invert if `invert` says
    so.
    """

    width: int
    height: int
    mode: Mode = "L"
    resampling: Resampling = "bilinear"
    #: `dark_on_light` inverts an image whose border is brighter than mid-grey: ink on paper becomes light
    #: strokes on black, as in MNIST.
    invert: Invert = "never"

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one input array."""
        return (self.height, self.width) if self.mode == "L" else (self.height, self.width, 3)


#: MNIST's own shape. Ink on paper is inverted; MNIST itself, with its black border, is not.
MNIST_INPUT = InputSpec(width=28, height=28, mode="L", resampling="bilinear", invert="dark_on_light")


def list_classes(classes: Sequence[str]) -> str:
    """Return the names of classes for a message; of many classes, the first MAX_LISTED_CLASSES."""
    more = ", ..." if len(classes) > MAX_LISTED_CLASSES else ""
    return ", ".join(classes[:MAX_LISTED_CLASSES]) + more


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model: one row of the ledger."""

    id: str
    architecture: str
    sha256: str
    size_bytes: int
    classes: tuple[str, ...]
    input_spec: InputSpec
    accuracy: float | None  # by its latest evaluation
    metrics: dict[str, Any]
    created_at: datetime
    aliases: tuple[str, ...] = ()

    def check_class(self, label: str) -> None:
        """Raise UserError if the label is not one of the model's classes."""
        if label not in self.classes:
            raise UserError(
                f"{label!r} is not a class of model {self.id}; its classes are {list_classes(self.classes)}."
            )
