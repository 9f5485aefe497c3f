"""Register a model that was trained elsewhere: check its file, try it out, and store it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from jobs.errors import Conflict, ModelRefused, UserError
from jobs.extras import require_tensorflow
from jobs.files import temporary_folder
from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import latest_version
from jobs.ledger.learning.models import check_dataset, list_models
from jobs.models.class_names import check_class_names
from jobs.models.model import MNIST_INPUT, InputSpec, Invert, Model, Resampling, name_classes, why_unfit
from jobs.models.model_file import check_model_file
from jobs.models.runtime import Runtime
from jobs.settings import Settings
from jobs.storage.registry import register_model
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from jobs.text import storable

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

#: The default classes of a model that takes MNIST's images: the ten digits.
DIGITS: Final = tuple("0123456789")

_NAME_CLASSES: Final = (
    "Name its classes, in the order of its output: --classes A,B,C, or --classes-file FILE with one per line."
)
_NO_PROBABILITIES: Final = (
    "if it answers logits, register it with --logits, which adds a softmax; otherwise end it with one"
)

#: How many noise images a new model is tried on, besides a black image and a white one.
_NOISE_IMAGES: Final = 30


class Registered(NamedTuple):
    """The result of registering a model file."""

    model: Model
    new: bool  # False if the same file was registered before
    unfit: str | None  # why `evaluate` cannot measure it; None if it can


def register(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    file: str | PathLike[str],
    *,
    classes: Sequence[str] | None,
    dataset: str,
    architecture: str,
    resampling: Resampling,
    invert: Invert | None,
    logits: bool,
    runtimes: Collection[Runtime],
    on_message: Callable[[str], None],
) -> Registered:
    """Register the `.keras` file as a model with these classes, after it has classified a few images.

    If no classes are given, they are those of the dataset; without a version of it, the digits if the model
    takes images of MNIST's format. Raises UserError if the file or the classes cannot be used, or TensorFlow
    is not installed; NotFound if there is no such dataset; Conflict if the file was registered for another
    dataset, with other classes, another input or other outputs, or if the store is not the one that the
    workers use; Unavailable.
    """
    path = Path(file)
    with ledger.reading() as connection:
        check_dataset(connection, dataset)
        version = latest_version(connection, dataset)
    if classes is None and version is not None:
        classes = version.classes
    if classes is not None:
        check_class_names(classes, "The list of classes")
        classes = tuple(classes)
    require_tensorflow("Registering")
    from worker.learning.compiling.compile import compile_if_slow

    data = read_model(path)
    try:
        classes, input_spec, image_seconds = _test_run(
            settings.cache_dir, data, classes, resampling, invert, logits
        )
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
        logits=logits,
        dataset=dataset,
    )
    if model.classes != classes:
        raise Conflict(
            f"This file is already registered as model {model.id}, with other classes: "
            f"{name_classes(model.classes)}. `labelmill models edit {model.id}` corrects them."
        )
    # A model that was registered before large JPEGs were reduced stays as it is.
    if model.input_spec != replace(input_spec, reduction=model.input_spec.reduction):
        raise Conflict(
            f"This file is already registered as model {model.id}, with another input: "
            f"{describe_input(model.input_spec)}. Use it as it is, or save the model again and register that "
            "file."
        )
    if model.logits != logits:
        outputs = "logits: repeat --logits" if model.logits else "probabilities: leave out --logits"
        raise Conflict(f"This file is already registered as model {model.id}, which answers {outputs}.")
    compile_if_slow(
        ledger,
        store,
        settings,
        model,
        image_seconds * 1e6,
        runtimes,
        on_begin=lambda: on_message("trying which runtime is the quickest: this takes a minute"),
    )
    unfit = why_unfit(model, version.classes) if version is not None else None
    return Registered(model, model.id not in known, unfit)


def read_model(path: Path) -> bytes:
    """Return the content of a model file. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions."
        ) from error


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
    cache_dir: Path,
    data: bytes,
    classes: tuple[str, ...] | None,
    resampling: Resampling,
    invert: Invert | None,
    logits: bool,
) -> tuple[tuple[str, ...], InputSpec, float]:
    """Load the model and run it. Return its classes, how images are prepared for it, and the time per image.

    Raises ModelRefused.
    """
    from worker.predicting.classifier import Classifier
    from worker.predicting.networks.keras_network import input_spec_of, load_model

    # A copy of the bytes that were read, because the file may have changed since.
    with temporary_folder(cache_dir, "registering-") as folder:
        copy = folder / "model.keras"
        copy.write_bytes(data)
        check_model_file(data)
        model = load_model(copy)
        spec = input_spec_of(model, resampling=resampling, invert=invert)
        outputs = tuple(model.outputs[0].shape)
        number = outputs[1] if len(outputs) == 2 and outputs[0] is None else None
        if classes is None:
            if number is not None and (spec.shape != MNIST_INPUT.shape or number != len(DIGITS)):
                raise ModelRefused(f"its {number} classes have no names. {_NAME_CLASSES}")
            classes = DIGITS
        if number not in (len(classes), None):
            raise ModelRefused(
                f"the model answers {number} classes, and {len(classes)} are named. {_NAME_CLASSES}"
            )
        classifier = Classifier.of_keras(model, classes, spec, logits=logits)
        classifier.warm_up()
        started = time.process_time()
        is_sound = _answers_probabilities(classifier)
        image_seconds = (time.process_time() - started) / (_NOISE_IMAGES + 2)
        if not is_sound:
            remedy = "they are not finite numbers" if logits else _NO_PROBABILITIES
            raise ModelRefused(f"its outputs are not probabilities that add up to 1: {remedy}")
        if logits and _answers_probabilities(Classifier.of_keras(model, classes, spec)):
            raise ModelRefused("its outputs are probabilities already: leave out --logits")
    return classes, spec, image_seconds


def _answers_probabilities(classifier: Classifier) -> bool:
    """Return whether any image gets probabilities.

    Single images may get none: a network that divides by the contrast has no answer for a blank image.
    """
    import numpy as np

    noise = np.random.default_rng(1).integers(0, 256, (_NOISE_IMAGES, *classifier.spec.shape), np.uint8)
    black, white = np.zeros_like(noise[:1]), np.full_like(noise[:1], 255)
    answers = classifier.predict(np.concatenate([black, white, noise]))
    return bool((answers.class_index >= 0).any())
