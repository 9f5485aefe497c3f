"""Predict one class with its confidence for each image: batches, padding, and a check of the answers.

A network (`worker.predicting.networks`) computes the batches. `worker.predicting.decode` makes the pixels;
`worker.predicting.windows` turns the predictions into outcomes. A classifier is not thread-safe: use one per
process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import numpy.typing as npt

from jobs.errors import ModelRefused
from jobs.models.model import InputSpec, Model
from worker.predicting.networks.network import Network, no_memory

if TYPE_CHECKING:
    from worker.predicting.tensorflow_runtime import keras

# Images per call of the model. There are few sizes, because TensorFlow traces and keeps a graph for each one.
# On one core, the 784-512-512-10 network takes 17 us per image in batches of 256, 16 in 512, 14 in 2048.
BATCH: Final = 512

# The smallest batch, for a single image that a user waits for: it takes 0.8 ms, against 7.6 ms in 512.
SMALL_BATCH: Final = 32

# For fewer images than BATCH, and for pictures that are too large for it.
_MEDIUM_BATCH: Final = 128

# The largest batch, for small pictures only.
LARGE_BATCH: Final = 2048

# A batch filled to this share is padded: smaller batches would compute nearly as many images in more calls.
_NEARLY_FULL: Final = 0.75

# Limit of a batch's pixels: the network's activations take many times as much. If SMALL_BATCH pictures have
# more, the network says how many it computes at a time.
_BATCH_BYTES: Final = 2 * 1024 * 1024

# Tolerance for the sum of an image's probabilities: a softmax in bfloat16 deviates from 1 by 0.004.
_SUM_TOLERANCE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for n images, in their order."""

    #: int64, shape (n,): the label's index in the model's classes; -1 if the model gave no probabilities.
    class_index: npt.NDArray[np.int64]
    #: float32, shape (n,): the probability of that class, 0 to 1; 0 if the index is -1.
    confidence: npt.NDArray[np.float32]
    #: The same of each image's k most probable classes, the label first, both of shape (n, k); None if they
    #: were not asked for.
    top: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None

    @classmethod
    def of(cls, probabilities: npt.NDArray[np.float32], top_k: int | None = None) -> Self:
        """Return the most probable classes. `probabilities` are those of `Classifier.probabilities`."""
        confidence = np.minimum(probabilities.max(axis=1), 1.0)
        label = np.where(confidence > 0, probabilities.argmax(axis=1), -1)
        return cls(label, confidence, None if top_k is None else _most_probable(probabilities, top_k))


def _most_probable(
    probabilities: npt.NDArray[np.float32], top_k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the indexes and confidences of the most probable classes: `top_k`, or all if there are fewer."""
    left, rows = probabilities.copy(), np.arange(len(probabilities))
    index = np.empty((len(left), min(top_k, left.shape[1])), np.int64)
    # Faster than sorting a thousand classes, and of equal ones it takes the first, as for the label.
    for place in range(index.shape[1]):
        index[:, place] = left.argmax(axis=1)
        left[rows, index[:, place]] = -1.0
    return index, np.minimum(np.take_along_axis(probabilities, index, axis=1), 1.0)


class Classifier:
    """A loaded model."""

    def __init__(self, network: Network, classes: Sequence[str], spec: InputSpec) -> None:
        self.network = network
        self.classes = tuple(classes)
        self.spec = spec
        self._sizes = _batch_sizes(math.prod(spec.shape)) or (network.large_pictures,)
        #: The number of images per call of `predict` that is most efficient.
        self.batch = self._sizes[-1]
        self._padded = {size: np.zeros((size, *spec.shape), np.uint8) for size in self._sizes}

    @classmethod
    def of_keras(
        cls, model: keras.Model, classes: Sequence[str], spec: InputSpec, *, logits: bool = False
    ) -> Self:
        """Return a classifier that runs a Keras model; with `logits`, with a softmax.

        Raises ModelRefused if the model's shapes are not those of `spec` and `classes`.
        """
        from worker.predicting.networks.keras_network import KerasNetwork

        return cls(KerasNetwork(model, classes, spec, logits=logits), classes, spec)

    @classmethod
    def load(cls, path: Path, classes: Sequence[str], spec: InputSpec, *, logits: bool = False) -> Self:
        """Load a `.keras` file whose SHA-256 the caller has checked.

        Raises ModelRefused if the file has another format, does not load safely, or does not fit `spec` and
        `classes`; Unavailable if there is no memory for the model.
        """
        from worker.predicting.networks.keras_network import load_model

        return cls.of_keras(load_model(path), classes, spec, logits=logits)

    @classmethod
    def load_registered(cls, path: Path, model: Model) -> Self:
        """Load the file of a registered model as its row describes it. Raises what `load` raises."""
        return cls.load(path, model.classes, model.input_spec, logits=model.logits)

    def warm_up(self) -> None:
        """Run the network for each batch size, so that the first image does not have to wait for it.

        Raises ModelRefused if the network cannot be run, Unavailable if this machine cannot run it or has no
        memory for it.
        """
        with self.network.translated_errors():
            for batch in self._padded.values():
                self.predict(batch)

    def predict(self, pixels: npt.NDArray[np.uint8], top_k: int | None = None) -> Predictions:
        """Classify uint8 pixels of shape (n, *spec.shape). Return n predictions in the same order.

        With `top_k`, they have that many of the most probable classes. Raises what `probabilities` raises.
        """
        return Predictions.of(self.probabilities(pixels), top_k)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probability of each class, float32 (n, number of classes), in the order of `pixels`.

        An image has a row of zeros if the model's output for it was not a probability distribution (NaN,
        infinity, a negative number, a wrong sum). `pixels` is as for `predict`. Raises ValueError for other
        shapes and types, Unavailable if there is no memory for a batch, ModelRefused if the model returns a
        wrong number of rows, and the runtime's errors for pixels that it cannot process.
        """
        try:
            found = np.empty((len(pixels), len(self.classes)), np.float32)
            for start, size, batch in self._batches(pixels):
                rows = self.network.run(batch)
                if len(rows) != len(batch):
                    raise ModelRefused(f"the model returned {len(rows)} rows for {len(batch)} images")
                found[start : start + size] = rows[:size]
        except MemoryError as error:
            raise no_memory() from error
        found[~_are_probabilities(found)] = 0.0
        return found

    def _batches(self, pixels: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """Yield the index of a batch's first image, its number of images, and the batch, of a fixed size."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.spec.shape:
            raise ValueError(f"expected uint8 {('n', *self.spec.shape)}, got {pixels.dtype} {pixels.shape}")
        start = 0
        while start < len(pixels):
            left = len(pixels) - start
            padded = self._padded[self._size_for(left)]
            batch = pixels[start : start + len(padded)]
            size = len(batch)
            if size < len(padded):
                # The tail still holds images of an earlier call, whose predictions the caller drops.
                padded[:size] = batch
                batch = padded
            yield start, size, batch
            start += size

    def _size_for(self, left: int) -> int:
        """Return the batch size for the remaining images.

        It is the smallest size that holds them all if that is small or nearly filled, else the largest size
        that they fill.
        """
        holding = next((size for size in self._sizes if size >= left), None)
        if holding is not None and (holding in self._sizes[:2] or left >= _NEARLY_FULL * holding):
            return holding
        return max(size for size in self._sizes if size <= left)


def start_keras(processes: int) -> None:
    """Import TensorFlow, and use this process's share of the cores if it does not compute yet."""
    from worker.predicting.tensorflow_runtime import configure_threads

    with suppress(RuntimeError):  # TensorFlow already runs in this process, with other threads
        configure_threads(processes)


def _are_probabilities(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which rows are probability distributions: shape (n,)."""
    # NaN needs no separate check, because every comparison with it is false. Sums of infinities would warn.
    with np.errstate(all="ignore"):
        deviation = np.abs(scores.sum(axis=1) - 1)
        sound: npt.NDArray[np.bool_] = (scores.min(axis=1) >= 0) & (deviation <= _SUM_TOLERANCE)
    return sound


def _batch_sizes(picture_bytes: int) -> tuple[int, ...]:
    """Return the batch sizes for pictures of `picture_bytes` bytes, the smallest first; none if large."""
    sizes = (SMALL_BATCH, _MEDIUM_BATCH, BATCH, LARGE_BATCH)
    return tuple(size for size in sizes if size * picture_bytes <= _BATCH_BYTES)
