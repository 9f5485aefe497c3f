"""The second step of a training run: train a network as the recipe says.

Nothing here reads the test images, not even between epochs.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jobs.errors import TrainingDiverged, Unavailable
from jobs.files import sync
from jobs.ledger.learning.runs import expect_end
from worker.learning.checkpoint import Checkpoint, save_checkpoint
from worker.learning.data import Data, Labelled
from worker.learning.epochs import Best, EpochResult, EpochWriter, Fitted
from worker.learning.learnt_images import learnt_images
from worker.learning.networks import build, freeze, make_training_copy, precision
from worker.learning.prepare import Prepared
from worker.learning.recipes import Recipe
from worker.learning.steps import Budget, distortion_share, make_train_step, one_cycle
from worker.learning.temperature import build_in, fit_temperature
from worker.learning.trainer import Trainer
from worker.learning.transfer import fit_transfer, with_new_head
from worker.predicting.networks.keras_network import as_input
from worker.predicting.tensorflow_runtime import keras, tf
from worker.time_limit import time_ran_out

logger = logging.getLogger(__name__)

#: How many pixels of validation images are in one batch: 1,000 images of MNIST.
_VALIDATION_PIXELS: Final = 784_000


#: An interrupted training loses this much work and an epoch. A large network's checkpoint has hundreds of
#: megabytes.
CHECKPOINT_SECONDS: Final = 30.0


def fit(trainer: Trainer, prepared: Prepared) -> Fitted:
    """Train the network, and record each epoch. Raises RunLost, and what `train` raises."""
    epochs = EpochWriter(trainer)
    if prepared.backbone is not None:
        return fit_transfer(trainer, prepared, prepared.backbone, epochs)
    network = train(
        prepared.data,
        prepared.recipe,
        start=None if prepared.start is None else with_new_head(trainer, prepared, prepared.start),
        on_batch=trainer.check,
        on_estimate=partial(_record_estimate, trainer),
        on_epoch=epochs.add,
        on_checkpoint=partial(save_checkpoint, trainer),
        resume_from=prepared.checkpoint,
    )
    return Fitted(network, epochs, temperature=_calibrate(network, prepared.data.validation))


def _calibrate(network: keras.Model, held_out: Labelled) -> float:
    """Make the network's confidences those of the held-out images. Return the temperature."""
    temperature = fit_temperature(_scores(network, held_out), held_out.labels) if len(held_out) else 1.0
    return temperature if build_in(network, temperature) else 1.0


def _record_estimate(trainer: Trainer, seconds: float) -> None:
    """Record in how many seconds the training ends at the latest. Raises RunLost."""
    logger.info(
        "training run %s: its last epoch ends within %.1f minutes", trainer.claim.run_id, seconds / 60
    )
    try:
        with trainer.ledger.transaction() as connection:
            expect_end(connection, trainer.claim, seconds)
    except Unavailable as error:
        if time_ran_out(error):
            raise
        logger.warning("the expected end of the training was not recorded: %s", error)


def train(
    data: Data,
    recipe: Recipe,
    *,
    start: keras.Model | None = None,
    on_batch: Callable[[], None] = lambda: None,
    on_estimate: Callable[[float], None] = lambda _seconds: None,
    on_epoch: Callable[[EpochResult], None] = lambda _result: None,
    on_checkpoint: Callable[[Checkpoint], None] = lambda _checkpoint: None,
    resume_from: Checkpoint | None = None,
) -> keras.Model:
    """Train a model and return it: the weights of the best epoch, or those after the last step.

    It begins with random weights, or with `start`, a trained network for the classes of the data, which is
    changed; of its layers only the last ones learn, and it is kept if no epoch gains anything. If the recipe
    averages, the running average of the weights counts. `on_batch` is called after each step, and `on_epoch`
    after each epoch. `on_estimate` gets the seconds that are left at most: once the first steps are measured,
    and after each later epoch. `on_checkpoint` gets a checkpoint after an epoch, at most one in
    CHECKPOINT_SECONDS: pass it as `resume_from` to resume the training. An exception from any of them ends
    the training.

    Raises ValueError for an unknown architecture, TrainingDiverged if a loss is not finite.
    """
    training = _Training(data, recipe, start)
    if resume_from is not None:
        training.restore(resume_from)
        for done in resume_from.epochs:
            on_epoch(done)
        # It belongs to this run now: if this one fails or is cancelled, the next one starts over.
        on_checkpoint(resume_from)
    saved_at = time.monotonic()
    while not training.is_over():
        result = training.run_epoch(on_batch, on_estimate)
        if result is None:
            break
        on_epoch(result)
        if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
            on_checkpoint(training.checkpoint())
            saved_at = time.monotonic()
    return training.finish()


class _Training:
    """The state of a training, which advances by epochs."""

    def __init__(self, data: Data, recipe: Recipe, start: keras.Model | None) -> None:
        keras.utils.set_random_seed(recipe.seed)
        self._data, self._recipe = data, recipe
        self._rng = np.random.default_rng(recipe.seed)
        self._images = learnt_images(data, recipe)

        # the network, and the copy that is trained
        self._finished = start or build(recipe.architecture, data.spec, len(data.classes))
        model = make_training_copy(self._finished, precision(recipe.architecture))
        if start is not None:
            freeze(model)
        self._averaged = self._finished if recipe.averaging else model

        self._steps = -(-len(self._images.learnt) // recipe.batch_size)  # in an epoch
        self._all_steps = self._steps * recipe.epochs
        self._budget = Budget(recipe, self._all_steps)
        self._is_estimated = False
        self._position = tf.Variable(0.0)
        optimizer = keras.optimizers.AdamW(
            one_cycle(recipe, self._all_steps, self._position), weight_decay=recipe.weight_decay
        )
        optimizer.build(model.trainable_variables)
        self._step = make_train_step(
            model, self._averaged, optimizer, recipe, data.spec, self._images.class_weights
        )
        self._variables = [*model.variables, *optimizer.variables]
        if self._averaged is not model:
            self._variables += self._averaged.variables
        self._epochs: list[EpochResult] = []
        self._best = None if start is None else _best_at_start(start, data, recipe)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a training with the same data and recipe."""
        for variable, value in zip(self._variables, checkpoint.variables, strict=True):
            variable.assign(value)
        self._rng.bit_generator.state = checkpoint.rng
        self._best, self._epochs = checkpoint.best, list(checkpoint.epochs)
        self._budget.skip(self._steps * len(self._epochs), checkpoint.seconds)

    def checkpoint(self) -> Checkpoint:
        """Return the state."""
        return Checkpoint(
            epochs=list(self._epochs),
            seconds=self._budget.seconds_spent(),
            rng=dict(self._rng.bit_generator.state),
            variables=[variable.numpy() for variable in self._variables],
            best=self._best,
        )

    def is_over(self) -> bool:
        """Return whether all epochs are done, or no better one came in time."""
        done = len(self._epochs)
        return done >= self._recipe.epochs or (
            self._best is not None and self._best.is_final(done, self._recipe)
        )

    def run_epoch(
        self, on_batch: Callable[[], None], on_estimate: Callable[[float], None]
    ) -> EpochResult | None:
        """Train for an epoch, and measure it. Return None if no time was left for a step.

        Raises TrainingDiverged if a loss is not finite.
        """
        started = time.monotonic()
        loss = correct = 0.0
        seen = 0
        first = len(self._epochs) * self._steps
        for number, rows in enumerate(self._images.batches(self._steps, self._rng), first):
            share = self._budget.share_done(number)
            if share >= 1:
                break
            batch_loss, batch_correct = self._take_step(number, rows, share)
            # These are tensors: reading their values here would wait for the step.
            loss, correct, seen = loss + batch_loss, correct + batch_correct, seen + len(rows)
            on_batch()
            self._budget.count_step()
            if not self._is_estimated:
                self._estimate(on_estimate)
        if not seen:
            return None
        val_loss, val_accuracy = _validate(self._averaged, self._data.validation)
        result = EpochResult(
            epoch=len(self._epochs) + 1,
            loss=float(loss) / seen,
            accuracy=float(correct) / seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.monotonic() - started,
        )
        _check_finite(result, is_validated=len(self._data.validation) > 0)
        self._epochs.append(result)
        self._best = _better_of(self._best, result, self._averaged, self._recipe)
        if self._is_estimated:
            self._estimate(on_estimate)
        return result

    def _take_step(self, number: int, rows: npt.NDArray[np.intp], share: float) -> tuple[Any, Any]:
        """Learn these rows, after the share of the training. Return their loss and correct answers."""
        self._position.assign(share * self._all_steps)
        seed = np.array((self._recipe.seed, number), np.int32)
        batch, labels = self._images.batch(rows, self._rng), self._images.labels[rows]
        found: tuple[Any, Any] = self._step(batch, labels, seed, distortion_share(self._recipe, share))
        return found

    def _estimate(self, on_estimate: Callable[[float], None]) -> None:
        if (left := self._budget.seconds_left()) is not None:
            on_estimate(left)
            self._is_estimated = True

    def finish(self) -> keras.Model:
        """Return the network with the weights of the best epoch, or the last ones if no epoch is chosen."""
        weights = self._best.weights if self._best else self._averaged.get_weights()
        self._finished.set_weights(weights)
        self._finished.trainable = True
        return self._finished


def _check_finite(result: EpochResult, *, is_validated: bool) -> None:
    """Raise TrainingDiverged if a loss is not finite.

    If the last step of an epoch spoils the weights, only the validation loss shows it.
    """
    if not math.isfinite(result.loss) or (is_validated and not math.isfinite(result.val_loss)):
        raise TrainingDiverged(
            f"The training diverged: its loss is not finite after epoch {result.epoch}. Try another seed; if "
            "it diverges again, check the images and their labels."
        )


def _best_at_start(network: keras.Model, data: Data, recipe: Recipe) -> Best | None:
    """Return a trained network as the best so far: an epoch has to gain something to be kept."""
    val_loss, val_accuracy = _validate(network, data.validation)
    nothing_learnt = EpochResult(0, math.nan, math.nan, val_loss, val_accuracy, 0.0)
    return _better_of(None, nothing_learnt, network, recipe)


def _better_of(best: Best | None, result: EpochResult, model: keras.Model, recipe: Recipe) -> Best | None:
    """Return the better epoch by its accuracy on the validation images; of two equal ones, the later.

    At a later epoch the learning rate is lower, and few images often cannot tell two apart. Return None if
    the recipe does not choose, or if there are no validation images.
    """
    if recipe.patience is None or math.isnan(result.val_accuracy):
        return None
    if best is not None and result.val_accuracy < best.result.val_accuracy:
        return best
    return Best(result, model.get_weights())


def _validate(model: keras.Model, validation: Labelled) -> tuple[float, float]:
    """Return the mean loss, in nats, and the accuracy on these images; NaN if there are none."""
    if not len(validation):
        return math.nan, math.nan
    labels = validation.labels
    scores = _scores(model, validation)
    chosen = scores[np.arange(len(labels)), labels]
    loss = float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())
    return loss, float((scores.argmax(axis=1) == labels).mean())


def _scores(model: keras.Model, images: Labelled) -> npt.NDArray[np.float32]:
    """Return the network's answers, float32 (n, classes)."""
    batch = max(1, _VALIDATION_PIXELS // math.prod(images.images.shape[1:]))
    return np.concatenate(
        [model(as_input(model, window), training=False).numpy() for window in images.windows(batch)]
    )


def save(model: keras.Model, path: Path) -> None:
    """Write a model to `path`, a `.keras` file, atomically and durably."""
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.keras")
    try:
        model.save(temporary, include_optimizer=False)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)  # the rename is durable only once the folder is
    finally:
        temporary.unlink(missing_ok=True)
