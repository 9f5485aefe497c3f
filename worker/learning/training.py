"""Train a network as a recipe says, and save it to a file.

`worker.learning.mnist` loads the data; `worker.learning.evaluation` measures the trained model as it will be
served. Nothing here reads the test images, not even between epochs.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from jobs.errors import TrainingDiverged
from jobs.files import sync
from jobs.model import MNIST_INPUT, InputSpec
from worker.learning.augmentation import distorter
from worker.learning.mnist import Mnist
from worker.learning.recipes import Recipe
from worker.predicting.decode import prepare_arrays
from worker.predicting.tensorflow_runtime import keras, multiplies_bfloat16, tf

#: Batch size for the held-out images.
_VALIDATION_BATCH: Final = 1000

#: The share of the training to which `Augmentation.at_the_end` applies: the last fifth.
_FINAL_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The loss and accuracy of one pass over the training images.

    The `val_` fields are measured afterwards on the held-out images, with the averaged weights if the recipe
    averages. They are NaN if no image is held out. Losses are in nats.
    """

    epoch: int  # the first is 1
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


def train(
    data: Mnist,
    recipe: Recipe,
    spec: InputSpec = MNIST_INPUT,
    *,
    on_batch: Callable[[int, int, int], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> keras.Model:
    """Train a model from scratch and return it: the weights after the last step, or their average.

    After each step `on_batch(epoch, done, total)` is called, where `done` and `total` count the steps of the
    epoch; after each epoch `on_epoch` is called. An exception from either ends the training. Raises
    ValueError for an unknown architecture, TrainingDiverged if a loss is not finite.
    """
    keras.utils.set_random_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)

    images = prepare_arrays(data.train_images, spec)
    labels = data.train_labels.astype(np.int32)
    shift = recipe.augmentation.shift if recipe.augmentation else 0
    shifted = shifted_views(images, shift)
    uncorrected = data.before_corrections
    held_out, learnt = np.split(rng.permutation(uncorrected), [recipe.held_out_of(uncorrected)])
    # Corrected images are never held out: people labelled them so that the model learns from them.
    corrected = np.arange(uncorrected, len(labels))
    learnt = np.append(learnt, np.tile(corrected, recipe.repeats_of(len(corrected), len(learnt))))

    finished = build(recipe.architecture, spec, len(data.classes))
    model = make_training_copy(finished, precision(recipe.architecture))
    steps = -(-len(learnt) // recipe.batch_size)
    optimizer = keras.optimizers.AdamW(
        _learning_rate(recipe, steps * recipe.epochs), weight_decay=recipe.weight_decay
    )
    optimizer.build(model.trainable_variables)
    averaged = finished if recipe.averaging else model
    step = make_train_step(model, averaged, optimizer, recipe, spec)

    for epoch in range(1, recipe.epochs + 1):
        started = time.monotonic()
        loss = correct = 0.0
        # Batch sizes differ by at most one. A small remainder batch would spoil the `cnn`: a tenth of its
        # moving averages comes from the last batch, which could be a single image.
        for number, chosen in enumerate(np.array_split(rng.permutation(learnt), steps)):
            down, right = rng.integers(2 * shift + 1, size=(2, len(chosen)))
            done = (epoch - 1) * steps + number
            seed = np.array((recipe.seed, done), np.int32)
            share = distortion_share(recipe, done / (steps * recipe.epochs))
            batch_loss, batch_correct = step(shifted[chosen, down, right], labels[chosen], seed, share)
            # These are tensors: reading their values here would wait for the step.
            loss, correct = loss + batch_loss, correct + batch_correct
            if on_batch:
                on_batch(epoch, number + 1, steps)
        val_loss, val_accuracy = _validate(averaged, images[held_out], labels[held_out])
        result = EpochResult(
            epoch=epoch,
            loss=float(loss) / len(learnt),
            accuracy=float(correct) / len(learnt),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.monotonic() - started,
        )
        # If the last step of an epoch spoils the weights, only the validation loss shows it.
        if not math.isfinite(result.loss) or (len(held_out) and not math.isfinite(val_loss)):
            raise TrainingDiverged(
                f"The training diverged: its loss is not finite after epoch {epoch}. Try another seed; if it "
                "diverges again, check the images and their labels."
            )
        if on_epoch:
            on_epoch(result)
    finished.set_weights(averaged.get_weights())
    return finished


def build(architecture: str, spec: InputSpec, classes: int) -> keras.Model:
    """Return an untrained network from uint8 pixels (n, *spec.shape) to probabilities (n, classes).

    Its first layer scales the pixels to 0..1, so that code that serves the model cannot forget to. Raises
    ValueError for an unknown architecture.
    """
    layers = keras.layers
    hidden: list[Any]
    if architecture == "mlp":
        hidden = [
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(512, activation="relu"),
        ]
    elif architecture == "cnn":
        hidden = [
            *([] if len(spec.shape) == 3 else [layers.Reshape((*spec.shape, 1))]),
            # Unpadded, 28x28 shrinks to 26, 24, 12, then 10, 8, 4, then one point. That is a third of the
            # work of padded layers, and loses nothing: the border of a digit is black.
            *_convolutions(32, 3, 3, 5),
            *_convolutions(64, 3, 3, 5),
            *_convolutions(128, 4),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.3),
        ]
    else:
        raise ValueError(f"unknown architecture {architecture!r}: there are 'mlp' and 'cnn'")
    return keras.Sequential(
        [
            keras.Input(spec.shape, dtype="uint8"),
            layers.Rescaling(1 / 255),
            *hidden,
            layers.Dense(classes, activation="softmax"),
        ],
        name=architecture,
    )


def _convolutions(filters: int, *sizes: int) -> list[Any]:
    """Return normalised convolutions of these kernel sizes; a size of 5 halves the picture."""
    layers = keras.layers
    return [
        layer
        for size in sizes
        for layer in (
            layers.Conv2D(
                filters,
                size,
                strides=2 if size == 5 else 1,
                padding="same" if size == 5 else "valid",
                use_bias=False,
            ),
            # With Keras's default of 0.99, the moving averages would still contain the untrained network
            # when a quick training ends.
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        )
    ]


class _FusedNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Run batch normalisation as one fused operation during training.

    Keras uses a dozen operations, each with a pass over all activations.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        for moving, of_the_batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self.momentum * moving + (1 - self.momentum) * of_the_batch)
        return outputs


def precision(architecture: str) -> str:
    """Return the precision in which a network is trained, "bfloat16" or "float32".

    Only a `cnn` uses bfloat16, and only if the processor multiplies it natively. The weights and the finished
    model are float32 in either case.
    """
    return "bfloat16" if architecture == "cnn" and multiplies_bfloat16() else "float32"


def make_training_copy(model: keras.Model, precision: str) -> keras.Model:
    """Return a copy of a network that trains faster: convolutions in `precision`, fused normalisation.

    The copy has the same weights. Never save it: its file could not be loaded without this module.
    """
    layers = keras.layers

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if precision != "float32" and isinstance(
            layer, layers.Conv2D | layers.BatchNormalization | layers.ReLU
        ):
            config["dtype"] = f"mixed_{precision}"
        kind = _FusedNormalization if type(layer) is layers.BatchNormalization else type(layer)
        return kind.from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def _learning_rate(recipe: Recipe, steps: int) -> Any:
    """Return the learning rate, or its one-cycle schedule over all steps (Smith, Super-Convergence, 2017)."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    warm_up = recipe.warm_up * steps

    class OneCycle(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        """Rise linearly, then fall along half a cosine."""

        def __call__(self, step: Any) -> Any:
            done = tf.cast(step, tf.float32)
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
    model: keras.Model, averaged: keras.Model, optimizer: Any, recipe: Recipe, spec: InputSpec
) -> Callable[..., Any]:
    """Return a training step as one graph: distort, predict, learn, average.

    The step takes images, uint8 (n, *spec.shape), labels, int32 (n,), a seed, int32 (2,), and the share of
    the distortion, float32. It returns the batch's summed loss and its number of correct answers.
    """
    distort = None
    if recipe.augmentation is not None and recipe.augmentation.distorts:
        distort = distorter(recipe.augmentation, spec.height, spec.width)
    classes = model.output_shape[-1]

    def step(images: Any, labels: Any, seed: Any, share: Any) -> tuple[Any, Any]:
        if distort is not None:
            images = distort(images, seed, share)
        truth = tf.one_hot(labels, classes)
        with tf.GradientTape() as tape:
            scores = model(images, training=True)
            losses = keras.losses.categorical_crossentropy(
                truth, scores, label_smoothing=recipe.label_smoothing
            )
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


def shifted_views(images: npt.NDArray[np.uint8], shift: int) -> npt.NDArray[np.uint8]:
    """Return a view of the images shifted by up to `shift` pixels in each direction.

    It is uint8 (n, 2 * shift + 1, 2 * shift + 1, *image shape), over one copy of the images with a black
    border. Indexing a batch in it shifts each image independently at no additional cost.
    """
    border = ((0, 0), (shift, shift), (shift, shift), *(((0, 0),) * (images.ndim - 3)))
    windows = sliding_window_view(np.pad(images, border), images.shape[1:3], axis=(1, 2))
    # In colour images, the window's axes come after the channels: move the channels to the end.
    return windows if images.ndim == 3 else np.moveaxis(windows, 3, -1)


def _validate(model: keras.Model, images: Any, labels: Any) -> tuple[float, float]:
    """Return the mean loss, in nats, and the accuracy on the held-out images; NaN if there are none."""
    if not len(labels):
        return math.nan, math.nan
    parts = [
        model(images[start : start + _VALIDATION_BATCH], training=False).numpy()
        for start in range(0, len(labels), _VALIDATION_BATCH)
    ]
    scores = np.concatenate(parts)
    chosen = scores[np.arange(len(labels)), labels]
    loss = float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())
    return loss, float((scores.argmax(axis=1) == labels).mean())


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
