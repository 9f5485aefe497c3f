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
from jobs.models.dataset import MNIST

Mode = Literal["L", "RGB"]
Resampling = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Invert = Literal["never", "always", "dark_on_light"]

#: At most this many classes are named in a message or a table.
_MAX_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an image becomes the model's input: uint8 of shape (height, width), or (height, width, 3) for RGB.

    The steps, in this order: decode a large JPEG in a half, a quarter or an eighth of its size, as
    `reduction` allows; rotate the image as its EXIF orientation says; composite transparency over white;
    convert to `mode`; resize to `width` x `height` pixels with `resampling`; invert if `invert` says so.
    """

    width: int
    height: int
    mode: Mode = "L"
    resampling: Resampling = "bilinear"
    #: `dark_on_light` inverts an image whose border is brighter than mid-grey: ink on paper becomes light
    #: strokes on black, as in MNIST.
    invert: Invert = "never"
    #: A JPEG is decoded in the smallest size that has at least so many times the larger of width and height,
    #: in both directions, which is several times as fast. 0: in its own size.
    reduction: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one input array."""
        return (self.height, self.width) if self.mode == "L" else (self.height, self.width, 3)

    @property
    def slug(self) -> str:
        """Return a name for folders of what was prepared for this input."""
        return f"{self.width}x{self.height}-{self.mode}-{self.resampling}-{self.invert}-{self.reduction}"


#: The reduction of new models in colour. With 2, the pixels of a photograph differ by 0.45 of 255 on average
#: from those of full decoding, and with 1 by 1.8.
PHOTO_REDUCTION: Final = 2

#: MNIST's own shape. Ink on paper is inverted; MNIST itself, with its black border, is not.
MNIST_INPUT = InputSpec(width=28, height=28, mode="L", resampling="bilinear", invert="dark_on_light")


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
    dataset: str = MNIST  # whose champion it can become
    #: The version of the dataset that the accuracy is about; None without an evaluation.
    accuracy_version: int | None = None
    aliases: tuple[str, ...] = ()
    logits: bool = False  # it answers logits, so softmax is added when it is served
    pinned_at: datetime | None = None  # as the champion: since when no training run replaces it

    def check_class(self, label: str) -> None:
        """Raise UserError if the label is not one of the model's classes."""
        if label not in self.classes:
            raise UserError(
                f"{label!r} is not a class of model {self.id}; its classes are {name_classes(self.classes)}."
            )


def why_unfit(model: Model, classes: Sequence[str]) -> str | None:
    """Return why the model cannot be evaluated on its dataset with these classes; None if it can."""
    if model.classes != tuple(classes):
        return f"it has other classes ({name_classes(model.classes)}) than the data ({name_classes(classes)})"
    return None


def name_input(spec: InputSpec) -> str:
    """Name the size and the colours of a model's input: "28x28 grey"."""
    return f"{spec.width}x{spec.height} {'grey' if spec.mode == 'L' else 'RGB'}"


def name_classes(classes: Sequence[str]) -> str:
    """Name the classes, or the first ones of many."""
    more = ", ..." if len(classes) > _MAX_NAMED else ""
    return ", ".join(classes[:_MAX_NAMED]) + more
