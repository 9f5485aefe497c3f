"""Evaluate a model as it is served: with the same `prepare` and the same `Classifier`.

`jobs.models.evaluation` declares the measures, `jobs.ledger.learning.models` stores them, and
`jobs.models.promotion` judges them.
"""

from __future__ import annotations

import base64
import io
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from sqlalchemy.engine import Connection

from jobs.errors import ModelRefused, UserError
from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion, find_evaluation, save_evaluation
from jobs.models.evaluation import (
    CALIBRATION_BINS,
    CONFIDENCE_EDGES,
    MISTAKES,
    NO_ANSWER,
    CalibrationBin,
    Evaluation,
    Mistake,
    Part,
)
from jobs.models.model import Model, why_unfit
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store
from worker.learning.data import Data, Labelled, Uint16
from worker.learning.networks import build
from worker.learning.temperature import scale
from worker.predicting.classifier import BATCH, Classifier, Predictions

logger = logging.getLogger(__name__)

#: Lower bound of a probability in the log loss: one image with probability 0 must not make the mean infinite.
MIN_PROBABILITY: Final = 1e-7

# Speed is measured on full batches, in several passes, so that a disturbed pass does not count.
_TIMED_BATCHES: Final = 4
_TIMED_PASSES: Final = 5

#: If one batch takes this long, three batches tell its speed well enough.
_SLOW_BATCH_SECONDS: Final = 0.1

#: Images prepared and classified at a time: at the input size of a model for photographs, all of them at once
#: would fill the memory.
_WINDOW_IMAGES: Final = 1000


#: Return the probabilities of images, float32 (n, classes).
Answers: TypeAlias = Callable[[Labelled], npt.NDArray[np.float32]]

#: By so many images it is checked whether a quicker way gives the answers of the file that will be served,
#: and by how much a probability may differ: features are kept as float16.
_CHECKED_IMAGES: Final = 64
_MAX_DIFFERENCE: Final = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """The measures, and the answers that they were computed from."""

    evaluation: Evaluation
    #: Little-endian uint16, shape (n, 2), whose bytes are those of `jobs.models.evaluation.pack_answers`: for
    #: each image the predicted class index, or NO_ANSWER, and the true one.
    answers: npt.NDArray[np.uint16]
    probabilities: npt.NDArray[np.float32]  # (n, classes)


def evaluate(
    classifier: Classifier,
    labelled: Labelled,
    *,
    image_microseconds: float | None = None,
    answers: Answers | None = None,
) -> Evaluated:
    """Classify images, as `classifier.spec` declares them, and compare the answers with their labels.

    An image without a valid answer counts as wrong. `image_microseconds` is given if the classifier's speed
    was measured already. `answers` is a quicker way to the same probabilities, used if it proves right on
    some of the images. Raises ValueError if there is no image, the numbers of images and labels differ, a
    label has no class, or there are more than NO_ANSWER classes.
    """
    images, labels = labelled.images, labelled.labels
    classes = classifier.classes
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels cannot be compared")
    if labels.max() >= len(classes):
        raise ValueError(f"label {labels.max()} is not one of the model's {len(classes)} classes")
    if len(classes) > NO_ANSWER:
        raise ValueError(f"{len(classes)} classes are too many: at most {NO_ANSWER} are possible")
    probabilities = _probabilities(labelled, classifier, answers)
    return measure(
        labelled, classes, probabilities, image_microseconds or _image_microseconds(classifier, labelled)
    )


def measure(
    labelled: Labelled,
    classes: tuple[str, ...],
    probabilities: npt.NDArray[np.float32],
    image_microseconds: float,
) -> Evaluated:
    """Compare a model's probabilities for images, float32 (n, classes), with their labels.

    An image without a valid answer counts as wrong.
    """
    labels = labelled.labels
    predictions = Predictions.of(probabilities)
    answered_as = np.where(predictions.class_index < 0, NO_ANSWER, predictions.class_index).astype(np.uint16)
    answered = answered_as != NO_ANSWER
    confidence, right = predictions.confidence[answered].astype(np.float64), (answered_as == labels)[answered]
    calibration = calibration_of(confidence, right)
    return Evaluated(
        Evaluation.from_confusion(
            classes,
            confusion_of(answered_as, labels, len(classes)).tolist(),
            log_loss=log_loss(probabilities, labels),
            calibration_error=calibration_error(calibration),
            calibration=calibration,
            confidence_histogram=tuple(np.histogram(confidence, CONFIDENCE_EDGES)[0].tolist()),
            image_microseconds=image_microseconds,
            mistakes=_most_confident_mistakes(classes, labelled, predictions),
        ),
        np.stack([answered_as, labels], axis=1).astype("<u2"),
        probabilities,
    )


def evaluate_parts(
    classifier: Classifier, data: Data, *, answers: Answers | None = None
) -> dict[Part, Evaluated]:
    """Evaluate a model on the test set of `data`, and on its live set if it has one.

    `answers` is as for `evaluate`. Raises UserError if the data cannot be prepared for the model,
    DataUnavailable, Unavailable.
    """
    evaluated: dict[Part, Evaluated] = {}
    speed = None
    for part in data.evaluation_fingerprints:
        labelled = data.part(part, classifier.spec)
        each = evaluate(classifier, labelled, image_microseconds=speed, answers=answers)
        speed = each.evaluation.image_microseconds  # measuring it takes longer than classifying a small set
        evaluated[part] = each
    return evaluated


def save_evaluations(
    connection: Connection, model_id: str, data: Data, evaluated: Mapping[Part, Evaluated]
) -> None:
    """Store what `evaluate_parts` returned."""
    for part, each in evaluated.items():
        save_evaluation(
            connection,
            model_id,
            data.evaluation_fingerprints[part],
            each.evaluation,
            each.answers.tobytes(),
            part=part,
            dataset=data.dataset,
            version=data.version,
        )


def evaluate_model(ledger: Ledger, store: Store, cache_dir: Path, model: Model, data: Data) -> Evaluation:
    """Evaluate a registered model on the test set and the live set of `data`, and store both evaluations.

    Return that on the test set. Raises UserError if the data and the model have different classes, or the
    data cannot be prepared for the model; ModelRefused if the model's file is missing, has changed or does
    not run; Unavailable.
    """
    unfit = why_unfit(model, data.classes)
    if unfit is not None:
        raise UserError(
            f"Model {model.id} cannot be evaluated: {unfit}. `labelmill models promote {model.id} --force` "
            "promotes it without an evaluation."
        )
    data.part(Part.TEST, model.input_spec)  # if this fails, the model need not be loaded
    path = fetch_model(store, model, cache_dir)
    try:
        classifier = Classifier.load_registered(path, model)
        classifier.warm_up()
        with classifier.network.translated_errors():
            evaluated = evaluate_parts(classifier, data)
    except ModelRefused as error:
        raise ModelRefused(f"Model {model.id} cannot be evaluated: {error}") from error
    with ledger.transaction() as connection:
        save_evaluations(connection, model.id, data, evaluated)
    return evaluated[Part.TEST].evaluation


def evaluate_champion(
    ledger: Ledger,
    store: Store,
    cache_dir: Path,
    data: Data,
    *,
    on_begin: Callable[[Model], None] = lambda _model: None,
) -> None:
    """Evaluate the dataset's champion on `data`, because the gate compares models image by image.

    Do nothing if there is no champion, if the data do not fit it, or if it was evaluated on these images
    before. `on_begin` is called with the champion before its evaluation. Raises what `evaluate_model` raises.
    """
    with ledger.reading() as connection:
        champion = find_champion(connection, data.dataset)
        if champion is None or why_unfit(champion, data.classes) is not None:
            return
        if all(
            find_evaluation(connection, champion.id, fingerprint, part=part) is not None
            for part, fingerprint in data.evaluation_fingerprints.items()
        ):
            return
    on_begin(champion)
    evaluate_model(ledger, store, cache_dir, champion, data)


def confusion_of(answers: Uint16, labels: Uint16, classes: int) -> npt.NDArray[np.int64]:
    """Return the confusion matrix, int64 (classes, classes + 1).

    Row t, column p counts the images of class t that were predicted as class p; the last column counts those
    without an answer. `answers` and `labels` are class indexes (n,); `answers` may be NO_ANSWER.
    """
    columns = np.where(answers == NO_ANSWER, classes, answers).astype(np.int64)
    counts = np.bincount(labels.astype(np.int64) * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def log_loss(probabilities: npt.NDArray[np.float32], labels: Uint16) -> float:
    """Return the mean of -ln p(truth), in nats, with p clipped to MIN_PROBABILITY..1.

    `probabilities` is float32 (n, classes), `labels` are class indexes (n,). An image without an answer has a
    row of zeros, so its p is MIN_PROBABILITY.
    """
    truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # Subtracted from 0, so that a perfect loss is 0 and not -0.
    return float(0.0 - np.log(truth.clip(MIN_PROBABILITY, 1.0)).mean())


def error_at(temperature: float, evaluated: Evaluated) -> float:
    """Return the calibration error that the model would have if its logits were divided by this again."""
    answered = evaluated.answers[:, 0] != NO_ANSWER
    confidence = scale(evaluated.probabilities[answered], temperature).max(axis=1)
    right = (evaluated.answers[:, 0] == evaluated.answers[:, 1])[answered]
    return calibration_error(calibration_of(confidence.astype(np.float64), right))


def calibration_of(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> tuple[CalibrationBin, ...]:
    """Return mean confidence and accuracy in CALIBRATION_BINS bins of equal width.

    `confidence`, float64 (n,), 0 to 1, and `right`, bool (n,), are those of images with an answer. Each bin
    includes its upper edge; the first also includes 0.
    """
    edges = [step / CALIBRATION_BINS for step in range(CALIBRATION_BINS + 1)]
    places = np.searchsorted(edges[1:-1], confidence, side="left")
    bins = []
    for place in range(CALIBRATION_BINS):
        here = places == place
        images = int(here.sum())
        bins.append(
            CalibrationBin(
                low=edges[place],
                high=edges[place + 1],
                images=images,
                confidence=float(confidence[here].mean()) if images else 0.0,
                accuracy=float(right[here].mean()) if images else 0.0,
            )
        )
    return tuple(bins)


def calibration_error(bins: tuple[CalibrationBin, ...]) -> float:
    """Return the expected calibration error, 0 if there is no image.

    It is the mean difference between the confidence and the accuracy of a bin, weighted by the bin's images.
    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
    equation 3.
    """
    images = sum(each.images for each in bins)
    weighted = sum(each.images * abs(each.accuracy - each.confidence) for each in bins)
    return weighted / images if images else 0.0


def _probabilities(
    labelled: Labelled, classifier: Classifier, answers: Answers | None
) -> npt.NDArray[np.float32]:
    """Return the probabilities of all classes, float32 (n, classes)."""
    if answers is not None:
        found = answers(labelled)
        rows = np.linspace(0, len(labelled) - 1, min(len(labelled), _CHECKED_IMAGES)).astype(np.intp)
        difference = float(np.abs(found[rows] - classifier.probabilities(labelled.take(rows))).max())
        if difference <= _MAX_DIFFERENCE:
            return found
        logger.warning("the model is evaluated image by image: its file's answers differ by %.3f", difference)
    return np.concatenate([classifier.probabilities(images) for images in labelled.windows(_WINDOW_IMAGES)])


def cnn_microseconds(data: Data) -> float:
    """Return the microseconds per image of a `cnn`, a network without a backbone, for this data."""
    network = build("cnn", data.spec, len(data.classes))
    classifier = Classifier.of_keras(network, data.classes, data.spec)
    classifier.warm_up()
    return _image_microseconds(classifier, data.test)


def _image_microseconds(classifier: Classifier, labelled: Labelled) -> float:
    """Return the microseconds per image on full batches: the median of several passes.

    The classifier must be warm.
    """
    batch = min(BATCH, classifier.batch)
    pixels = labelled.take(slice(_TIMED_BATCHES * batch))

    def passes(number: int, count: int) -> list[float]:
        # Too few images are repeated: a padded batch would take as long but count fewer images.
        timed = np.resize(pixels, (count, *pixels.shape[1:]))
        taken = []
        for _ in range(number):
            started = time.perf_counter()
            classifier.predict(timed)
            taken.append((time.perf_counter() - started) / count)
        return taken

    taken = passes(1, batch)
    if taken[0] * batch < _SLOW_BATCH_SECONDS:
        taken = passes(_TIMED_PASSES, _TIMED_BATCHES * batch)
    else:
        taken += passes(2, batch)
    return statistics.median(taken) * 1e6


def _most_confident_mistakes(
    classes: tuple[str, ...], labelled: Labelled, predictions: Predictions
) -> tuple[Mistake, ...]:
    labels = labelled.labels
    wrong = np.flatnonzero((predictions.class_index >= 0) & (predictions.class_index != labels))
    surest = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:MISTAKES].tolist()
    return tuple(
        Mistake(
            index=index,
            truth=classes[labels[index]],
            label=classes[predictions.class_index[index]],
            confidence=float(predictions.confidence[index]),
            png=_png(picture),
        )
        for index, picture in zip(surest, labelled.take(surest), strict=True)
    )


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
