"""Define the recipes: all settings, besides the data, that determine a trained model.

docs/explanation/training.md has the figures and the reasons.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self

from jobs.errors import UserError

Architecture = Literal["mlp", "cnn"]
Profile = Literal["quick", "long"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The maximum distortions of a training image, drawn each time that the image is used.

    Each is drawn uniformly from -x to x, except the elastic part, which has a normal distribution.
    """

    shift: int = 0  # whole pixels, in each direction
    rotation: float = 0.0  # degrees
    zoom: float = 0.0  # 0.1: 0.9 to 1.1 times the size, separately for each axis
    shear: float = 0.0  # 0.1: a tenth of a pixel sideways for each pixel up
    elastic: float = 0.0  # standard deviation of a point's displacement, in pixels
    smoothness: float = 4.0  # pixels over which neighbouring points move together
    at_the_end: float = 1.0  # the factor of all but the shift in the last fifth of the training

    @property
    def distorts(self) -> bool:
        """Return whether it does more than shift."""
        return any((self.rotation, self.zoom, self.shear, self.elastic))


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a training. The defaults are those of a quick `mlp`."""

    architecture: Architecture = "mlp"
    profile: str = "quick"  # the name of the recipe's profile
    #: Passes over the training images.
    epochs: int = 4
    #: Images per step.
    batch_size: int = 256
    seed: int = 1
    #: Adam's highest learning rate.
    learning_rate: float = 0.005
    #: `one-cycle`: rises during the share `warm_up` of all steps, then falls to 0 along a cosine.
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    warm_up: float = 0.3
    #: Decay of the weights, decoupled from the gradient (AdamW).
    weight_decay: float = 0.0
    #: The share of the probability that is spread evenly over all classes.
    label_smoothing: float = 0.0
    #: The share of the averaged weights that each step keeps; 0 turns averaging off.
    averaging: float = 0.0
    #: The share of the training images that is held out for validation between epochs.
    held_out: float = 1 / 30
    augmentation: Augmentation | None = Augmentation(shift=1)
    #: Each corrected image is learnt several times per epoch, so that a few hundred among 60,000 make a
    #: difference: at most so often, and until they are this share of the other images.
    correction_repeats: int = 10
    correction_share: float = 0.2
    #: Promote the model even if the gate refuses it. Recorded with the verdict.
    force: bool = False

    def held_out_of(self, images: int) -> int:
        """Return how many of `images` training images are held out.

        At least one unless `held_out` is 0: if the share of a few images were rounded to none, an epoch would
        have no validation figures.
        """
        return max(1, round(images * self.held_out)) if self.held_out else 0

    def repeats_of(self, corrections: int, others: int) -> int:
        """Return how often each of the corrections is learnt per epoch, beside the other images."""
        most = round(self.correction_share * others / corrections) if corrections else 0
        return max(1, min(self.correction_repeats, most))

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object, for the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the recipe in a JSON object of the ledger. Raises TypeError on unknown fields."""
        augmentation = value.get("augmentation")
        return cls(**{**value, "augmentation": augmentation and Augmentation(**augmentation)})


#: The baseline: constant learning rate, no augmentation, small batches, every training image.
PLAIN: Final = Recipe(
    profile="plain",
    epochs=3,
    batch_size=32,
    learning_rate=0.001,
    schedule="constant",
    held_out=0.0,
    augmentation=None,
)

#: A network without convolutions must learn from examples that a distorted digit is still the same digit.
_STRONG_AUGMENTATION: Final = Augmentation(
    shift=1, rotation=12, zoom=0.12, shear=0.15, elastic=1.2, smoothness=4.0, at_the_end=0.5
)
_LIGHT_AUGMENTATION: Final = replace(_STRONG_AUGMENTATION, shift=2, elastic=0.6, at_the_end=0.25)

_RECIPES: Final = {
    # Label smoothing adds 0.0010 to the accuracy. It is small because it makes the model underconfident.
    ("mlp", "quick"): Recipe(label_smoothing=0.005),
    ("mlp", "long"): Recipe(
        profile="long",
        epochs=300,
        learning_rate=0.002,
        warm_up=0.05,
        averaging=0.999,
        held_out=1 / 12,
        augmentation=_STRONG_AUGMENTATION,
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
        augmentation=_LIGHT_AUGMENTATION,
    ),
}


def recipe_for(architecture: str, profile: str, *, seed: int) -> Recipe:
    """Return the recipe for an architecture and a profile. Raises UserError if there is none."""
    try:
        return replace(_RECIPES[architecture, profile], seed=seed)
    except KeyError:
        known = ", ".join(f"{name} {length}" for name, length in _RECIPES)
        raise UserError(f"There is no recipe {architecture} {profile}. The recipes are: {known}.") from None
