"""What a model is: an immutable trained version, and how a picture becomes its input.

The declaration is stored with the model, so that training, evaluation and prediction cannot drift apart.
The code that carries it out is `worker.predicting.decode`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, Self

from jobs.errors import UserError

Mode = Literal["L", "RGB"]
Resampling = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Invert = Literal["never", "always", "dark_on_light"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How a picture becomes the model's input: uint8 of shape (height, width), or (height, width, 3) for RGB.

    The steps, in this order: turn the picture as its EXIF orientation says; lay transparency over white;
    convert to `mode`; resize to `width` x `height` pixels with `resampling`; invert if `invert` says so.
    """

    width: int
    height: int
    mode: Mode = "L"
    resampling: Resampling = "bilinear"
    #: `dark_on_light` inverts a picture whose border is brighter than mid-grey: ink on paper becomes
    #: what MNIST is, light strokes on black.
    invert: Invert = "never"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input array."""
        return (self.height, self.width) if self.mode == "L" else (self.height, self.width, 3)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """From the ledger's JSON object. Raises TypeError on unknown or missing fields."""
        return cls(**value)


#: MNIST's own shape. Ink on paper is inverted, MNIST itself (black border) is left alone.
MNIST_INPUT = InputSpec(width=28, height=28, mode="L", resampling="bilinear", invert="dark_on_light")


@dataclass(frozen=True, slots=True)
class Model:
    """One row of the registry."""

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
        """Raises UserError for a label that is none of its classes."""
        if label not in self.classes:
            raise UserError(
                f"{label!r} is no class of model {self.id}; its classes are {', '.join(self.classes)}."
            )
