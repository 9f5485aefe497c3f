"""The training step, its schedules, and the budget of steps and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jobs.models.model import InputSpec
from worker.learning.augmentation import distorter
from worker.learning.recipes import Recipe
from worker.predicting.networks.keras_network import as_input
from worker.predicting.tensorflow_runtime import keras, tf

#: The share of the training to which `Augmentation.at_the_end` applies: the last fifth.
_FINAL_SHARE: Final = 0.2

#: How long steps are measured before the end of the training is estimated. The first step, which takes longer
#: because it compiles the graph, is not counted.
MEASURED_SECONDS: Final = 10.0


class Budget:
    """The steps that a training takes, or the time if its recipe limits it."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        """Begin a training of at most so many steps."""
        self._seconds = 60 * recipe.max_minutes if recipe.max_minutes else math.inf
        self._started = time.monotonic()
        self._steps = self._steps_left = steps
        self._steps_measured, self._measured_from = -1, 0.0

    def skip(self, steps: int, seconds: float) -> None:
        """Count the steps and seconds of the run that this training resumes."""
        self._steps_left -= steps
        self._started -= seconds

    def seconds_spent(self) -> float:
        """Return how long the training has taken."""
        return time.monotonic() - self._started

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
        spent = self.seconds_spent() / self._seconds
        return min(1.0, max(of_steps, spent)) if steps else of_steps


def one_cycle(recipe: Recipe, steps: int, position: Any) -> Any:
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
