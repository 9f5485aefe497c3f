"""What a person or a schedule asks of a training run: each option with its bounds and its text, once.

Commands, the client, the HTTP API and the schedules pass it whole. `worker.learning.recipes` makes a recipe
of it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from jobs.errors import UserError
from jobs.models.dataset import MAX_NAME, MNIST

Architecture: TypeAlias = Literal["mlp", "cnn", "transfer", "finetune"]
Profile: TypeAlias = Literal["quick", "long"]
Augment: TypeAlias = Literal["digits", "photos", "none"]

_NO_NUL: Final = r"^[^\x00]*$"  # PostgreSQL stores none

#: The width and height that a person may ask for, in pixels.
MIN_SIZE: Final = 8
MAX_SIZE: Final = 512

#: TensorFlow's random generators take a signed 32-bit seed.
MAX_SEED: Final = 2**31 - 1


def _to_whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: JSON may write an integer as 7.0, too.
WHOLE: Final = BeforeValidator(_to_whole)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainingOptions:
    """How to train. What is None is chosen from the data."""

    #: The options in the order in which they are shown.
    HOW: ClassVar = ("architecture", "profile", "backbone", "start", "size", "augment", "max_minutes")

    architecture: Annotated[
        Architecture | None,
        Field(
            description="The network; transfer builds on a backbone, finetune continues a trained model. "
            "Default: mlp with a profile; otherwise transfer, if there is a backbone and the images are in "
            "colour or larger than 64 pixels, and else cnn."
        ),
    ] = None
    profile: Annotated[
        Profile | None,
        Field(
            description="Use a recipe for digits such as MNIST's, which trains for a fixed number of epochs. "
            "Default: chosen from the data."
        ),
    ] = None
    backbone: Annotated[
        str | None,
        Field(
            max_length=MAX_NAME,
            pattern=_NO_NUL,
            description="The backbone of a transfer. Default: the latest that was added.",
        ),
    ] = None
    start: Annotated[
        str | None,
        Field(
            max_length=MAX_NAME,
            pattern=_NO_NUL,
            description="The model to fine-tune. Default: the dataset's champion.",
        ),
    ] = None
    size: Annotated[
        int | None,
        Field(
            strict=True,
            ge=MIN_SIZE,
            le=MAX_SIZE,
            description="Scale images to this width and height in pixels. Default: chosen from the data.",
        ),
        WHOLE,
    ] = None
    augment: Annotated[
        Augment | None,
        Field(
            description="How images are varied: photos are mirrored, digits are not. Default: digits if all "
            "are grey."
        ),
    ] = None
    max_minutes: Annotated[
        float | None,
        Field(
            strict=True,
            gt=0,
            le=100_000,
            description="Train for at most this time; decoding and evaluation are not included. Default: as "
            "long as it takes, but 10 if a command of the local stack requests it without a profile.",
        ),
    ] = None

    @property
    def how(self) -> dict[str, Any]:
        """Return the options that say how to train, without those that are None."""
        given = asdict(self)
        return {name: given[name] for name in self.HOW if given[name] is not None}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainingRequest(TrainingOptions):
    """What to train, and how. What is None is chosen from the data."""

    dataset: Annotated[
        str,
        Field(max_length=MAX_NAME, pattern=_NO_NUL, description="The dataset; its latest version is used."),
    ] = MNIST
    seed: Annotated[
        int | None,
        Field(
            strict=True,
            ge=0,
            le=MAX_SEED,
            description="Seed of all random numbers. Default: a new one each time; 1 for `train`.",
        ),
        WHOLE,
    ] = None
    force: Annotated[
        bool, Field(strict=True, description="Promote the model whatever the gate says; that is recorded.")
    ] = False

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Return a request with these options. Raises UserError if one is unknown or out of its range."""
        try:
            return cls(**options)
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0]).replace("_", " ")
            raise UserError(f"{name}: {problem['msg']}, got {problem['input']!r}.") from None

    def with_defaults(self, how: dict[str, Any]) -> Self:
        """Return the request with these options where it has none.

        They are dropped if one builds on a trained network and the other does not, or on another kind,
        because few options suit both.
        """
        own, other = _kind(self.how), _kind(how)
        if own is not None and own != other and {own, other} & {"finetune", "transfer"}:
            return self
        return type(self)(**(asdict(self) | how | self.how))


def _kind(how: dict[str, Any]) -> str | None:
    """Return the architecture that these options ask for, or None."""
    return "transfer" if "backbone" in how else how.get("architecture")
