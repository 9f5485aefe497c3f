"""Define the recipes: all settings, besides the data, that determine a trained model.

docs/explanation/training.md has the figures and the reasons.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from jobs.errors import UserError
from jobs.models.training_request import Architecture, Augment, TrainingRequest

#: The name of a recipe that is chosen from the data.
ADAPTIVE: Final = "adaptive"


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
    mirror: bool = False  # left and right are swapped in every second image
    brightness: float = 0.0  # 0.1: the pixels plus up to a tenth of white, or minus
    contrast: float = 0.0  # 0.1: the differences from the image's mean times 0.9 to 1.1

    @property
    def bends(self) -> bool:
        """Return whether it moves pixels by more than a shift."""
        return any((self.rotation, self.zoom, self.shear, self.elastic))

    @property
    def distorts(self) -> bool:
        """Return whether it does more than shift."""
        return self.bends or any((self.mirror, self.brightness, self.contrast))


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a training. The defaults are those of a quick `mlp`."""

    architecture: Architecture | None = "mlp"  # None: chosen from the data
    profile: str = "quick"  # the name of the recipe's profile
    #: Passes over the training images. 0: chosen from the data, with all that depends on their number.
    epochs: int = 4
    #: Images per step.
    batch_size: int = 256
    seed: int = 1
    #: The seed was drawn at random, so a run that resumes another one uses that run's seed.
    is_seed_random: bool = False
    #: Adam's highest learning rate. It rises during the share `warm_up` of all steps, then falls to 0 along a
    #: cosine.
    learning_rate: float = 0.005
    warm_up: float = 0.3
    #: Decay of the weights, decoupled from the gradient (AdamW).
    weight_decay: float = 0.0
    #: The share of the probability that is spread evenly over all classes.
    label_smoothing: float = 0.0
    #: The share of the averaged weights that each step keeps; 0 turns averaging off.
    averaging: float = 0.0
    augmentation: Augmentation | None = Augmentation(shift=1)
    #: Each corrected image is learnt several times per epoch, so that a few hundred among 60,000 make a
    #: difference: at most this often, and until they are this share of the other images.
    correction_repeats: int = 10
    correction_share: float = 0.2
    #: Promote the model even if the gate refuses it. Recorded with the verdict.
    force: bool = False
    #: Promote the model only if there is no champion.
    keep_champion: bool = False
    #: The model that `finetune` starts from.
    start: str | None = None
    #: The backbone that `transfer` builds on. None: the latest.
    backbone: str | None = None
    #: The images' width and height in pixels. None: chosen from the data.
    size: int | None = None
    #: The kind of augmentation, if a profile has none. None: chosen from the data.
    augment: Augment | None = None
    #: Rare classes weigh more in the loss.
    class_weights: bool = False
    #: The best epoch counts, and the training ends after this many epochs without a better one. None: the
    #: last epoch counts.
    patience: int | None = None
    #: The longest training, in minutes. The learning rate falls in time for it.
    max_minutes: float | None = None

    @property
    def is_adaptive(self) -> bool:
        """Return whether the data decides how long it trains, rather than a profile."""
        return self.profile == ADAPTIVE

    def repeats_of(self, corrections: int, others: int) -> int:
        """Return how often each of the corrections is learnt per epoch, among the other images."""
        most = round(self.correction_share * others / corrections) if corrections else 0
        return max(1, min(self.correction_repeats, most))

    def trains_same_model(self, other: Recipe) -> bool:
        """Return whether both train the same model on the same images, however it is promoted."""
        mine, others = (
            replace(each, is_seed_random=False, force=False, keep_champion=False) for each in (self, other)
        )
        return mine == others

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object, for the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the recipe in a JSON object of the ledger. Raises TypeError on unknown fields."""
        augmentation = value.get("augmentation")
        return cls(**{**value, "augmentation": augmentation and Augmentation(**augmentation)})


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
        augmentation=_LIGHT_AUGMENTATION,
    ),
}


def recipe_for(architecture: str, profile: str, *, seed: int) -> Recipe:
    """Return the recipe for digits of an architecture and a profile."""
    return replace(_RECIPES[architecture, profile], seed=seed)


# ---- any dataset --------------------------------------------------------------------------------------


def recipe_of(request: TrainingRequest) -> Recipe:
    """Return the recipe for a request, without any access to data or ledger. Raises UserError."""
    asked = "transfer" if request.backbone and request.architecture is None else request.architecture
    architecture = asked or ("mlp" if request.profile else None)
    seed = secrets.randbelow(2**31) if request.seed is None else request.seed
    if architecture != "finetune" and request.start is not None:
        raise UserError("Only a fine-tuning starts from a model: add --architecture finetune.")
    if architecture == "finetune" and request.size is not None:
        raise UserError("A fine-tuned model takes images of its own size: leave out --size.")
    if architecture != "transfer" and request.backbone is not None:
        raise UserError("Only a transfer builds on a backbone: leave out --architecture or --backbone.")
    if architecture == "transfer" and request.augment is not None:
        raise UserError("A transfer does not vary the images: leave out --augment.")
    if request.profile is None:
        return Recipe(
            architecture=architecture,
            profile=ADAPTIVE,
            epochs=0,
            seed=seed,
            is_seed_random=request.seed is None,
            augmentation=None,
            force=request.force,
            start=request.start,
            backbone=request.backbone,
            size=request.size,
            augment=request.augment,
            class_weights=True,
            max_minutes=request.max_minutes,
        )
    if architecture == "transfer":
        raise UserError("A transfer has no profile: leave out --profile.")
    if architecture == "finetune":
        raise UserError("A fine-tuning has no profile. Give the time instead: --max-minutes.")
    if request.augment is not None:
        raise UserError("A profile has its own augmentation: leave out --profile or --augment.")
    recipe = recipe_for(architecture or "mlp", request.profile, seed=seed)
    return replace(
        recipe,
        is_seed_random=request.seed is None,
        force=request.force,
        size=request.size,
        max_minutes=request.max_minutes,
    )


#: A training ends after this share of its epochs without a better one, but at least _LEAST_PATIENCE epochs.
#: While the learning rate is high, the accuracy on a small validation split can stand still for long.
_PATIENCE_SHARE: Final = 1 / 3
_LEAST_PATIENCE: Final = 8

#: How many images a training learns in all, if the limits for epochs allow it.
_IMAGES_LEARNT: Final = 1_200_000
_EPOCHS: Final = (8, 300)
_FINETUNED_EPOCHS: Final = (6, 80)

#: A batch has at most so many pixels, 128 times 64x64: the activations of a network need memory for all.
_BATCH_PIXELS: Final = 524_288
_LEAST_BATCH: Final = 16

#: With at most this many training images, batches are smaller and weights are averaged over a shorter time.
_FEW_IMAGES: Final = 5_000


def augmentation_of(kind: Augment, width: int, height: int, *, few: bool) -> Augmentation | None:
    """Return a kind of augmentation for images of this size; `few` images are distorted more."""
    side = min(width, height)
    if kind == "none":
        return None
    if kind == "digits":
        shift = max(1, round(side / 14))
        if not few:
            return Augmentation(shift=shift)
        return Augmentation(shift=shift, rotation=10, zoom=0.1, shear=0.1, at_the_end=0.5)
    return Augmentation(
        shift=max(1, round(side / 12)),
        rotation=10 if few else 0,
        zoom=0.2 if few else 0.1,
        mirror=True,
        brightness=0.15,
        contrast=0.25,
        at_the_end=0.5,
    )


def fitted_to(recipe: Recipe, images: int, *, width: int, height: int, grey: bool) -> Recipe:
    """Return the recipe with what is chosen from the data: `images` training images of this size."""
    if recipe.epochs:
        return recipe
    if recipe.architecture == "transfer":
        # It has no steps.
        return replace(recipe, epochs=1, batch_size=0, learning_rate=0.0, warm_up=0.0)
    few = images <= _FEW_IMAGES
    tuned = recipe.architecture == "finetune"
    least, most = _FINETUNED_EPOCHS if tuned else _EPOCHS
    epochs = max(least, min(most, _IMAGES_LEARNT // max(1, images)))
    augment: Augment = recipe.augment or ("digits" if grey else "photos")
    fitting = max(_LEAST_BATCH, _BATCH_PIXELS // (width * height))
    return replace(
        recipe,
        epochs=epochs,
        batch_size=min(32 if images <= _FEW_IMAGES // 4 else 64 if few else 128, fitting),
        learning_rate=0.0003 if tuned else 0.001 if recipe.architecture == "mlp" else 0.004,
        warm_up=0.1,
        weight_decay=0.02,
        label_smoothing=0.05 if few else 0.0,
        averaging=0.99 if few else 0.998,
        patience=max(_LEAST_PATIENCE, round(_PATIENCE_SHARE * epochs)),
        augment=augment,
        augmentation=augmentation_of(augment, width, height, few=few),
    )
