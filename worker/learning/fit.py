"""The second step of a training run: train a network as the recipe says.

Nothing here reads the test images, not even between epochs.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from jobs.errors import TrainingDiverged, Unavailable
from jobs.files import sync
from jobs.ledger.learning.runs import expect_end
from jobs.models.model import InputSpec
from worker.learning.augmentation import distorter
from worker.learning.data import Data, Labelled
from worker.learning.epochs import EpochResult, EpochWriter, Fitted
from worker.learning.networks import build, freeze, make_training_copy, precision
from worker.learning.prepare import Prepared
from worker.learning.recipes import Recipe
from worker.learning.temperature import build_in, fit_temperature
from worker.learning.trainer import Trainer
from worker.learning.transfer import fit_transfer, with_new_head
from worker.predicting.networks.keras_network import as_input
from worker.predicting.tensorflow_runtime import keras, tf
from worker.time_limit import time_ran_out

logger = logging.getLogger(__name__)

#: How many pixels of validation images are in one batch: 1,000 images of MNIST.
_VALIDATION_PIXELS: Final = 784_000

#: The share of the training to which `Augmentation.at_the_end` applies: the last fifth.
_FINAL_SHARE: Final = 0.2

#: How long steps are measured before the end of the training is estimated. The first step, which takes longer
#: because it compiles the graph, is not counted.
MEASURED_SECONDS: Final = 10.0

#: How much more an image of a rare class may weigh than one of the most frequent class.
MAX_CLASS_WEIGHT: Final = 10


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
) -> keras.Model:
    """Train a model and return it: the weights of the best epoch, or those after the last step.

    It begins with random weights, or with `start`, a trained network for the classes of the data, which is
    changed; of its layers only the last ones learn, and it is kept if no epoch gains anything. If the recipe
    averages, the running average of the weights counts. `on_batch` is called after each step, and `on_epoch`
    after each epoch. `on_estimate` gets the seconds that are left at most: once the first steps are measured,
    and after each later epoch. An exception from any of them ends the training.

    Raises ValueError for an unknown architecture, TrainingDiverged if a loss is not finite.
    """
    keras.utils.set_random_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    images = learnt_images(data, recipe)

    # the network, and the copy that is trained
    finished = start or build(recipe.architecture, data.spec, len(data.classes))
    model = make_training_copy(finished, precision(recipe.architecture))
    if start is not None:
        freeze(model)
    averaged = finished if recipe.averaging else model

    steps = -(-len(images.learnt) // recipe.batch_size)
    budget = Budget(recipe, steps * recipe.epochs)
    best = _best_at_start(finished, data, recipe) if start is not None else None
    position = tf.Variable(0.0)
    optimizer = keras.optimizers.AdamW(
        _learning_rate(recipe, steps * recipe.epochs, position), weight_decay=recipe.weight_decay
    )
    optimizer.build(model.trainable_variables)
    step = make_train_step(model, averaged, optimizer, recipe, data.spec, images.class_weights)
    is_estimated = False
    for epoch in range(1, recipe.epochs + 1):
        started = time.monotonic()
        loss = correct = 0.0
        seen = 0
        for number, rows in enumerate(images.batches(steps, rng), (epoch - 1) * steps):
            share = budget.share_done(number)
            if share >= 1:
                break
            position.assign(share * steps * recipe.epochs)
            seed = np.array((recipe.seed, number), np.int32)
            batch, labels = images.batch(rows, rng), images.labels[rows]
            batch_loss, batch_correct = step(batch, labels, seed, distortion_share(recipe, share))
            # These are tensors: reading their values here would wait for the step.
            loss, correct, seen = loss + batch_loss, correct + batch_correct, seen + len(rows)
            on_batch()
            budget.count_step()
            if not is_estimated and (left := budget.seconds_left()) is not None:
                on_estimate(left)
                is_estimated = True
        if not seen:  # the time was over at the end of the last epoch
            break
        val_loss, val_accuracy = _validate(averaged, data.validation)
        result = EpochResult(
            epoch=epoch,
            loss=float(loss) / seen,
            accuracy=float(correct) / seen,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.monotonic() - started,
        )
        _check_finite(result, is_validated=len(data.validation) > 0)
        on_epoch(result)
        if is_estimated and (left := budget.seconds_left()) is not None:
            on_estimate(left)
        best = _better_of(best, result, averaged, recipe)
        if best and best.is_final(epoch, recipe):
            break
    finished.set_weights(best.weights if best else averaged.get_weights())
    finished.trainable = True
    return finished


def _check_finite(result: EpochResult, *, is_validated: bool) -> None:
    """Raise TrainingDiverged if a loss is not finite.

    If the last step of an epoch spoils the weights, only the validation loss shows it.
    """
    if not math.isfinite(result.loss) or (is_validated and not math.isfinite(result.val_loss)):
        raise TrainingDiverged(
            f"The training diverged: its loss is not finite after epoch {result.epoch}. Try another seed; if "
            "it diverges again, check the images and their labels."
        )


@dataclass(frozen=True, slots=True, eq=False)
class LearntImages:
    """The images of one training, and how often each is learnt."""

    images: Labelled  # the learnt ones are among them
    labels: npt.NDArray[np.int32]  # of `images`
    learnt: npt.NDArray[np.intp]  # rows of `images`; corrections are in it several times
    class_weights: npt.NDArray[np.float32] | None
    shift: int
    edges: bool

    def batches(self, steps: int, rng: np.random.Generator) -> list[npt.NDArray[np.intp]]:
        """Return the rows to learn in each step of an epoch.

        Batch sizes differ by at most one. A small remainder batch would spoil the `cnn`: a tenth of its
        moving averages comes from the last batch, which could be a single image.
        """
        return np.array_split(rng.permutation(self.learnt), steps)

    def batch(self, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Return the images in these rows, each shifted at random."""
        down, right = rng.integers(2 * self.shift + 1, size=(2, len(rows)))
        images = self.images.take(rows)
        if self.shift:
            images = shifted_views(images, self.shift, edges=self.edges)[np.arange(len(rows)), down, right]
        return images


def learnt_images(data: Data, recipe: Recipe) -> LearntImages:
    """Return the training images; corrected ones are repeated as the recipe says."""
    labels = data.train.labels.astype(np.int32)
    learnt, corrected = np.split(np.arange(len(labels)), [data.before_corrections])
    learnt = np.append(learnt, np.tile(corrected, recipe.repeats_of(len(corrected), len(learnt))))
    return LearntImages(
        images=data.train,
        labels=labels,
        learnt=learnt,
        class_weights=class_weights(labels[learnt], len(data.classes)) if recipe.class_weights else None,
        shift=recipe.augmentation.shift if recipe.augmentation else 0,
        edges=recipe.augment is not None,
    )


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


class Budget:
    """The steps that a training takes, or the time if its recipe limits it."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        """Begin a training of at most so many steps."""
        self._seconds = 60 * recipe.max_minutes if recipe.max_minutes else math.inf
        self._started = time.monotonic()
        self._steps = self._steps_left = steps
        self._steps_measured, self._measured_from = -1, 0.0

    def count_step(self) -> None:
        """Count a step that has been taken."""
        if self._steps_measured < 0:
            self._measured_from = time.monotonic()
        self._steps_left -= 1
        self._steps_measured += 1

    def seconds_left(self) -> float | None:
        """Return how many seconds the training takes at most, or None while too few steps are measured."""
        now = time.monotonic()
        measured = now - self._measured_from
        if self._steps_measured < 1 or measured < MEASURED_SECONDS:
            return None
        of_steps = measured / self._steps_measured * self._steps_left
        return max(0.0, min(of_steps, self._started + self._seconds - now))

    def share_done(self, steps: int) -> float:
        """Return how much is done after so many steps: their share, or that of the time if that is more.

        The first step is always taken.
        """
        of_steps = steps / self._steps
        spent = (time.monotonic() - self._started) / self._seconds
        return min(1.0, max(of_steps, spent)) if steps else of_steps


def class_weights(labels: npt.NDArray[np.int32], classes: int) -> npt.NDArray[np.float32]:
    """Return how much an image of each class weighs in the loss, 1 on average over all images.

    The weights are the inverse frequencies, but at most MAX_CLASS_WEIGHT times the smallest, because a few
    images with very large weights would be memorised.
    """
    counts = np.bincount(labels, minlength=classes)
    inverse = 1 / np.maximum(counts, counts.max() / MAX_CLASS_WEIGHT)
    weights: npt.NDArray[np.float64] = inverse * counts.sum() / (inverse * counts).sum()
    return weights.astype(np.float32)


def _learning_rate(recipe: Recipe, steps: int, position: Any) -> Any:
    """Return the one-cycle schedule of the learning rate over all steps (Smith, Super-Convergence, 2017).

    `position`, a variable, is the step that the training is at. If the time is short, it skips steps.
    """
    warm_up = recipe.warm_up * steps

    class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        """Rise linearly, then fall along half a cosine."""

        def __call__(self, step: Any) -> Any:  # noqa: ARG002
            done = position.value()
            up = (done + 1) / (warm_up + 1)
            down = 0.5 * (1 + tf.cos(math.pi * (done - warm_up) / (steps - warm_up)))
            return recipe.learning_rate * tf.where(done < warm_up, up, down)

    return OneCycle()


def distortion_share(recipe: Recipe, done: float) -> np.float32:
    """Return the share of the distortion, 0 to 1, after the share `done` of the training.

    At the end the network should see digits nearly as they are, because what it learns last stays. Earlier,
    less distortion would make it memorise its training images.
    """
    end = recipe.augmentation.at_the_end if recipe.augmentation else 1.0
    return np.float32(1.0 if done < 1 - _FINAL_SHARE else end)


def make_train_step(
    model: keras.Model,
    averaged: keras.Model,
    optimizer: Any,
    recipe: Recipe,
    spec: InputSpec,
    class_weights: npt.NDArray[np.float32] | None = None,
) -> Callable[..., Any]:
    """Return a training step as one graph: distort, predict, learn, average.

    The step takes images, uint8 (n, *spec.shape), labels, int32 (n,), a seed, int32 (2,), and the share of
    the distortion, float32. It returns the batch's summed loss and its number of correct answers.
    """
    distort = None
    if recipe.augmentation is not None and recipe.augmentation.distorts:
        distort = distorter(recipe.augmentation, spec.height, spec.width, edges=recipe.augment is not None)
    classes = model.output_shape[-1]

    def step(images: Any, labels: Any, seed: Any, share: Any) -> tuple[Any, Any]:
        if distort is not None:
            images = distort(images, seed, share)
        truth = tf.one_hot(labels, classes)
        with tf.GradientTape() as tape:
            scores = model(as_input(model, images), training=True)
            losses = keras.losses.categorical_crossentropy(
                truth, scores, label_smoothing=recipe.label_smoothing
            )
            if class_weights is not None:
                losses *= tf.gather(class_weights, labels)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        if averaged is not model:
            # The average starts with a short memory, so that the first steps do not stay in it.
            done = tf.cast(optimizer.iterations, tf.float32)
            keep = tf.minimum(recipe.averaging, (1 + done) / (10 + done))
            for average, weight in zip(averaged.weights, model.weights, strict=True):
                average.assign(keep * average + (1 - keep) * weight)
        right = tf.equal(tf.argmax(scores, axis=1, output_type=tf.int32), labels)
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(right, tf.float32))

    signature = [
        tf.TensorSpec((None, *spec.shape), tf.uint8),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec((), tf.float32),
    ]
    graph: Callable[..., Any] = tf.function(step, input_signature=signature, autograph=False)
    return graph


def shifted_views(images: npt.NDArray[np.uint8], shift: int, *, edges: bool = False) -> npt.NDArray[np.uint8]:
    """Return a view of the images shifted by up to `shift` pixels in each direction.

    It is uint8 (n, 2 * shift + 1, 2 * shift + 1, *image shape), over one copy of the images with a black
    border, or with `edges` one that repeats the outermost pixels.
    """
    border = ((0, 0), (shift, shift), (shift, shift), *(((0, 0),) * (images.ndim - 3)))
    windows = sliding_window_view(
        np.pad(images, border, mode="edge" if edges else "constant"), images.shape[1:3], axis=(1, 2)
    )
    # In colour images, the window's axes come after the channels: move the channels to the end.
    return windows if images.ndim == 3 else np.moveaxis(windows, 3, -1)


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
