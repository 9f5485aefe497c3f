"""The third step of a training run: evaluate the new model, and the champion on the same images."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass

from jobs.errors import ModelRefused, Unavailable, UserError
from jobs.files import temporary_folder
from jobs.ledger.learning.models import find_champion
from jobs.models.evaluation import Part
from jobs.models.model import Model
from jobs.storage.keras_files import cache_errors
from worker.learning.data import Data
from worker.learning.epochs import Fitted
from worker.learning.evaluation import (
    Evaluated,
    cnn_microseconds,
    error_at,
    evaluate_champion,
    evaluate_parts,
)
from worker.learning.fit import save
from worker.learning.trainer import Trainer
from worker.predicting.classifier import Classifier
from worker.time_limit import time_ran_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The new model's file and measures."""

    file: bytes
    evaluated: dict[Part, Evaluated]  # on the test set, and on the live set if there is one
    temperature: float  # by which its logits were divided
    uncalibrated_error: float  # its calibration error on the test set without that
    cnn_microseconds: float | None  # what a `cnn` would take per image, if this one has a backbone

    @property
    def image_microseconds(self) -> float:
        """Return the new model's time per image."""
        return self.evaluated[Part.TEST].evaluation.image_microseconds


def judge(trainer: Trainer, data: Data, fitted: Fitted) -> Judged:
    """Evaluate the new model on the test set and the live set, then the champion, whose measures are stored.

    The new model is read back from its file by the code that will serve it. Raises Unavailable, RunLost.
    """
    cache = trainer.settings.cache_dir
    with ExitStack() as stack:
        with cache_errors(cache):  # nothing is written outside the state folder
            path = stack.enter_context(temporary_folder(cache, "training-")) / "model.keras"
            save(fitted.network, path)
        classifier = Classifier.load(path, data.classes, data.spec)
        classifier.warm_up()
        evaluated = evaluate_parts(classifier, data, answers=fitted.answers)
        trainer.check()
        file = path.read_bytes()
    try:
        trainer.retry_longer(lambda: evaluate_champion(trainer.ledger, trainer.store, cache, data))
    except (ModelRefused, UserError, Unavailable) as error:
        if time_ran_out(error):
            raise
        # The new model is still registered; the gate then reports that the two cannot be compared.
        logger.warning("the champion cannot be evaluated: %s", error)
    trainer.check()
    temperature = fitted.temperature
    return Judged(
        file=file,
        evaluated=evaluated,
        temperature=temperature,
        uncalibrated_error=error_at(1 / temperature, evaluated[Part.TEST]),
        # Only a network with a backbone has a quicker way to its answers.
        cnn_microseconds=None if fitted.answers is None else _cnn_microseconds(trainer, data),
    )


def _cnn_microseconds(trainer: Trainer, data: Data) -> float:
    """Return what a `cnn` would take per image, as measured for the champion if its input is the same.

    Raises Unavailable.
    """

    def find() -> Model | None:
        with trainer.ledger.reading() as connection:
            return find_champion(connection, data.dataset)

    champion = trainer.retry_longer(find)
    if champion is not None and champion.input_spec == data.spec:
        known = champion.metrics.get("cnn_microseconds")
        if known is not None:
            return float(known)
    return cnn_microseconds(data)
