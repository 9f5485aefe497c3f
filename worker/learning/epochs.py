"""The epochs of a training run, and the network that they end with."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ledger.learning.runs import add_epoch
from worker.learning.evaluation import Answers
from worker.learning.recipes import Recipe
from worker.learning.trainer import Trainer
from worker.predicting.tensorflow_runtime import keras
from worker.time_limit import time_ran_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The loss and accuracy of one pass over the training images.

    The `val_` fields are measured afterwards on the held-out images, with the averaged weights if the recipe
    averages. They are NaN without validation images. Losses are in nats.
    """

    epoch: int  # the first is 1
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The best epoch so far, by the validation images."""

    result: EpochResult
    weights: list[npt.NDArray[Any]]

    def is_final(self, epoch: int, recipe: Recipe) -> bool:
        """Return whether the training ends after this epoch, because no better one came in time."""
        # While the learning rate rises, an epoch may be worse than the one before.
        since = epoch - max(self.result.epoch, recipe.warm_up * recipe.epochs)
        return recipe.patience is not None and since >= recipe.patience


class EpochWriter:
    """Write epochs to the ledger as they finish.

    They are only informative, so a failed write must not end the training: an epoch that cannot be written is
    written with the next one, or at the latest with the verdict.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._waiting: list[EpochResult] = []

    def add(self, result: EpochResult) -> None:
        """Record one more epoch. Raises RunLost."""
        self._waiting.append(result)
        try:
            with self._trainer.ledger.transaction() as connection:
                self.write(connection)
        except Unavailable as error:
            if time_ran_out(error):
                raise
            logger.warning("epoch %d will be recorded with the next one: %s", result.epoch, error)
        else:
            self._waiting.clear()

    def write(self, connection: Connection) -> None:
        """Write the epochs that are not known to be in the ledger. Raises RunLost."""
        for result in self._waiting:
            add_epoch(connection, self._trainer.claim, asdict(result))


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A trained network."""

    network: keras.Model
    epochs: EpochWriter  # those that are not recorded yet
    #: Return the network's probabilities for images, float32 (n, classes), sooner than it would itself. None:
    #: there is no quicker way.
    answers: Answers | None = None
    temperature: float = 1.0  # by which its logits were divided: see `worker.learning.temperature`
