"""Recipes: all that decides how a model turns out, besides the data. docs/explanation/training.md has
the figures and the reasons.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self

from jobs.errors import UserError

Architecture = Literal["mlp", "cnn"]
Profile = Literal["quick", "long"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far a training image may be distorted; each time it is seen, another way.

    All are drawn evenly from -x to x, but for the elastic part, which is drawn from a normal distribution.
    """

    shift: int = 0  # whole pixels, each way
    rotation: float = 0.0  # degrees
    zoom: float = 0.0  # 0.1: from 0.9 to 1.1 of its size, by axis
    shear: float = 0.0  # 0.1: a tenth of a pixel sideways for each pixel up
    elastic: float = 0.0  # pixels that a point strays, standard deviation
    smoothness: float = 4.0  # pixels over which neighbouring points stray together
    at_the_end: float = 1.0  # the share of all this, but the shift, that is left for the last fifth

    @property
    def bends(self) -> bool:
        """Whether it does more than shift."""
        return any((self.rotation, self.zoom, self.shear, self.elastic))


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to train. The defaults are those of a quick `mlp`."""

    architecture: Architecture = "mlp"
    profile: str = "quick"  # where the recipe comes from
    #: Passes over the training images.
    epochs: int = 4
    #: Images per step.
    batch_size: int = 256
    seed: int = 1
    #: Adam's rate at its highest.
    learning_rate: float = 0.005
    #: `one-cycle`: up for the share `warm_up` of all steps, then down to nothing along a cosine.
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    warm_up: float = 0.3
    #: Of the weights, decoupled from the gradient (AdamW).
    weight_decay: float = 0.0
    #: The share of the probability that goes to all classes alike.
    label_smoothing: float = 0.0
    #: How much of the averaged weights stays at each step; 0: the weights are not averaged.
    averaging: float = 0.0
    #: Training images that are not trained on, to look at between epochs, as a share of all.
    held_out: float = 1 / 30
    augmentation: Augmentation | None = Augmentation(shift=1)
    #: Promote what comes out whatever the gate says. Recorded with the verdict.
    force: bool = False

    def held_out_of(self, images: int) -> int:
        """How many of so many training images are held out: one at the least, unless none are to be. Of few
        images the share may come to less than a half, and then an epoch would have nothing to tell.
        """
        return max(1, round(images * self.held_out)) if self.held_out else 0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """From the ledger's JSON object. Raises TypeError on unknown fields."""
        augmentation = value.get("augmentation")
        return cls(**{**value, "augmentation": augmentation and Augmentation(**augmentation)})


#: The issue's yardstick: no schedule, no tricks, small batches, every training image.
PLAIN: Final = Recipe(
    profile="plain",
    epochs=3,
    batch_size=32,
    learning_rate=0.001,
    schedule="constant",
    held_out=0.0,
    augmentation=None,
)

#: A network without convolutions has to be shown what they know: that a digit stays what it is, bent.
_BENT: Final = Augmentation(
    shift=1, rotation=12, zoom=0.12, shear=0.15, elastic=1.2, smoothness=4.0, at_the_end=0.5
)
_SLIGHTLY_BENT: Final = replace(_BENT, shift=2, elastic=0.6, at_the_end=0.25)

_RECIPES: Final = {
    # Worth 0.0010 of the accuracy and no time. It makes the answers less sure than they are right, so little.
    ("mlp", "quick"): Recipe(label_smoothing=0.005),
    ("mlp", "long"): Recipe(
        profile="long",
        epochs=300,
        learning_rate=0.002,
        warm_up=0.05,
        averaging=0.999,
        held_out=1 / 12,
        augmentation=_BENT,
    ),
    ("cnn", "quick"): Recipe(
        architecture="cnn",
        epochs=4,
        batch_size=128,
        learning_rate=0.004,
        augmentation=Augmentation(shift=2),
    ),
    ("cnn", "long"): Recipe(
        architecture="cnn",
        profile="long",
        epochs=30,
        batch_size=128,
        learning_rate=0.004,
        warm_up=0.1,
        weight_decay=0.01,
        averaging=0.999,
        held_out=1 / 12,
        augmentation=_SLIGHTLY_BENT,
    ),
}


def recipe_for(architecture: str, profile: str, *, seed: int) -> Recipe:
    """The recipe of that name. Raises UserError where there is none."""
    try:
        return replace(_RECIPES[architecture, profile], seed=seed)
    except KeyError:
        known = ", ".join(f"{name} {length}" for name, length in _RECIPES)
        raise UserError(f"There is no recipe {architecture} {profile}: there are {known}.") from None
