"""Registering a model that was trained elsewhere: check its file, try it out, and store it."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from jobs.errors import Conflict, DataUnavailable, ModelRefused, UserError
from jobs.files import temporary_folder
from jobs.ledger import Ledger
from jobs.ledger.models import list_models
from jobs.model import InputSpec, Invert, Model, Resampling, list_classes
from jobs.model_file import check_model_file
from jobs.registry import register_model
from jobs.settings import Settings
from jobs.store import Store
from jobs.store_identity import check_store
from jobs.text import is_plain, storable
from labelmill.training import require_tensorflow

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

#: The default classes: the ten digits.
DIGITS: Final = tuple("0123456789")

#: How many noise images a new model is tried on, besides a black image and a white one.
_NOISE_IMAGES: Final = 30


class Registered(NamedTuple):
    """The result of registering a model file."""

    model: Model
    new: bool  # False if the same file was registered before
    measurable: bool  # whether it has the classes of the evaluation images, so that `evaluate` can measure it


def register(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    file: str | PathLike[str],
    *,
    classes: Sequence[str],
    architecture: str,
    resampling: Resampling,
    invert: Invert | None,
) -> Registered:
    """Register the `.keras` file as a model with these classes, after it has classified a few images.

    Raises UserError if the file or the classes cannot be used, or TensorFlow is not installed; Conflict if
    the file was registered with other classes or another input, or if the store is not the one that the
    workers use; Unavailable.
    """
    classes, path = tuple(classes), Path(file)
    names = ",".join(classes)
    if not all(classes) or len(set(classes)) != len(classes):
        raise UserError(f"The classes {names!r} cannot be used: each class needs its own name.")
    if not all(map(is_plain, classes)):
        raise UserError(f"The classes {names!r} cannot be used: a name cannot contain control characters.")
    require_tensorflow("Registering")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        input_spec = _test_run(settings.cache_dir, data, classes, resampling, invert)
    except ModelRefused as error:
        raise UserError(f"{path} cannot be used: {error}") from error
    check_store(ledger, store)
    with ledger.reading() as connection:
        known = {model.id for model in list_models(connection)}
    model = register_model(
        ledger,
        store,
        data,
        architecture=architecture,
        classes=classes,
        input_spec=input_spec,
        accuracy=None,
        metrics={"file": storable(path.name)},
    )
    if model.classes != classes:
        raise Conflict(
            f"This file is already registered as model {model.id}, with other classes: "
            f"{list_classes(model.classes)}."
        )
    if model.input_spec != input_spec:
        raise Conflict(
            f"This file is already registered as model {model.id}, with another input: "
            f"{describe_input(model.input_spec)}."
        )
    return Registered(model, model.id not in known, _is_measurable(settings, classes))


def describe_input(spec: InputSpec) -> str:
    """Describe in words how images are prepared for the model."""
    colours = "grey" if spec.mode == "L" else "RGB"
    inverted = {
        "never": "none inverted",
        "always": "all inverted",
        "dark_on_light": "inverted if the border is bright",
    }
    return f"{colours} bytes, {spec.width} x {spec.height}, {spec.resampling}, {inverted[spec.invert]}"


def _test_run(
    cache_dir: Path, data: bytes, classes: tuple[str, ...], resampling: Resampling, invert: Invert | None
) -> InputSpec:
    """Load the model and run it. Return how images are prepared for it. Raises ModelRefused."""
    from worker.predicting.classifier import Classifier, input_spec_of, load_model

    # A copy of the bytes that were read, because the file may have changed since.
    with temporary_folder(cache_dir, "registering-") as folder:
        copy = folder / "model.keras"
        copy.write_bytes(data)
        check_model_file(data)
        model = load_model(copy)
        spec = input_spec_of(model, resampling=resampling, invert=invert)
        match tuple(model.outputs[0].shape):
            case (None, int(number)) if number != len(classes):
                raise ModelRefused(
                    f"the model has {number} classes, and {len(classes)} are named (left out: the ten "
                    f"digits). Name its {number} classes, in the order of its output: --classes A,B,C"
                )
        classifier = Classifier(model, classes, spec)
        classifier.warm_up()
        _check_probabilities(classifier)
    return spec


def _check_probabilities(classifier: Classifier) -> None:
    """Raise ModelRefused if no image gets probabilities.

    Single images may get none: a network that divides by the contrast has no answer for a blank image.
    """
    import numpy as np

    noise = np.random.default_rng(1).integers(0, 256, (_NOISE_IMAGES, *classifier.spec.shape), np.uint8)
    black, white = np.zeros_like(noise[:1]), np.full_like(noise[:1], 255)
    answers = classifier.predict(np.concatenate([black, white, noise]))
    if (answers.class_index < 0).all():
        raise ModelRefused("its outputs are not probabilities that add up to 1: end it with a softmax")


def _is_measurable(settings: Settings, classes: tuple[str, ...]) -> bool:
    """Return whether `evaluate` can measure a model with these classes, as far as known before a download."""
    from worker.learning.mnist import class_names

    try:
        return classes == class_names(settings.mnist_dir)
    except DataUnavailable:  # `evaluate` will say so
        return True
