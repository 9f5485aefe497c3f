"""Load a trained model and predict one class with its confidence for each image.

`worker.predicting.decode` makes the pixels; `worker.predicting.windows` turns the predictions into outcomes.
A classifier is not thread-safe: use one per process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import ModelRefused, Unavailable
from jobs.files import temporary_folder
from jobs.models.model import MNIST_INPUT, PHOTO_REDUCTION, InputSpec, Invert, Model, Resampling
from jobs.models.model_file import copy_with_config, find_compiled_parts
from jobs.reading import why
from worker.predicting.tensorflow_runtime import configure_threads, keras, tf

__all__ = ["BATCH", "Classifier", "Predictions", "configure_threads"]

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

# Limit of a batch's pixels, except in the smallest batch: the network's activations take many times as much.
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

    def __init__(
        self, model: keras.Model, classes: Sequence[str], spec: InputSpec, *, logits: bool = False
    ) -> None:
        """Wrap a Keras model, and add a softmax if it answers logits.

        Raises ModelRefused if its shapes are not those of `spec` and `classes`.
        """
        _check_shapes(model, classes, spec)
        self.classes = tuple(classes)
        self.spec = spec
        self._sizes = _batch_sizes(math.prod(spec.shape))
        #: The number of images per call of `predict` that is most efficient.
        self.batch = self._sizes[-1]
        self._padded = {size: np.zeros((size, *spec.shape), np.uint8) for size in self._sizes}

        has_channel = len(model.inputs[0].shape) > len(spec.shape) + 1

        def run(pixels: Any) -> Any:
            if has_channel:
                pixels = pixels[..., tf.newaxis]
            scores = tf.cast(model(pixels, training=False), tf.float32)
            if logits:
                scores = tf.nn.softmax(scores)
            # NaN needs no separate check, because every comparison with it is false.
            sound = tf.reduce_all((scores >= 0) & (scores <= 1 + _SUM_TOLERANCE), axis=1) & (
                tf.abs(tf.reduce_sum(scores, axis=1) - 1) <= _SUM_TOLERANCE
            )
            return tf.where(sound[:, tf.newaxis], scores, 0.0)

        # keras.Model.predict() would trace each new shape, and leak memory; these shapes are traced once.
        def traced(size: int) -> Any:
            signature = [tf.TensorSpec((size, *spec.shape), tf.uint8)]
            return tf.function(run, input_signature=signature, autograph=False)

        self._run = {size: traced(size) for size in self._sizes}

    @classmethod
    def load(cls, path: Path, classes: Sequence[str], spec: InputSpec, *, logits: bool = False) -> Self:
        """Load a `.keras` file whose SHA-256 the caller has checked.

        Raises ModelRefused if the file has another format, does not load safely, or does not fit `spec` and
        `classes`; Unavailable if there is no memory for the model.
        """
        return cls(load_model(path), classes, spec, logits=logits)

    @classmethod
    def load_registered(cls, path: Path, model: Model) -> Self:
        """Load the file of a registered model as its row describes it. Raises what `load` raises."""
        return cls.load(path, model.classes, model.input_spec, logits=model.logits)

    def warm_up(self) -> None:
        """Trace and run the model for each batch size, so that the first image does not have to wait for it.

        Raises ModelRefused if the model cannot be run, Unavailable if this machine cannot run it or has no
        memory for it.
        """
        with translated_model_errors():
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
        wrong number of rows, and TensorFlow's errors for pixels that it cannot process.
        """
        with _translated_memory_errors():
            found = np.empty((len(pixels), len(self.classes)), np.float32)
            for start, size, batch in self._batches(pixels):
                # .numpy() waits for the result, because TensorFlow may read the reused buffer in place.
                rows = self._run[len(batch)](batch).numpy()
                if len(rows) != len(batch):
                    raise ModelRefused(f"the model returned {len(rows)} rows for {len(batch)} images")
                found[start : start + size] = rows[:size]
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


def load_model(path: Path) -> keras.Model:
    """Load the network in a `.keras` file, without how it was compiled.

    Raises ModelRefused if the file has another format or does not load safely, Unavailable if there is no
    memory for it.
    """
    if path.suffix != ".keras":  # .h5 and SavedModel can run code as they load
        raise ModelRefused(
            f"{path.name} is not a .keras file, the only format that is loaded: save the model as one"
        )
    try:
        with _translated_memory_errors(), _without_compilation(path) as loadable:
            return keras.saving.load_model(loadable, compile=False, safe_mode=True)
    except (SoftTimeLimitExceeded, Unavailable):
        raise
    except Exception as error:
        # Keras raises many kinds of errors on a bad file; the first line of the message is enough.
        reason = str(error).strip().partition("\n")[0]
        raise ModelRefused(
            f"{path.name} could not be loaded by Keras {keras.__version__}: {reason}"
        ) from error


@contextmanager
def _without_compilation(path: Path) -> Iterator[Path]:
    """Yield the path of the model's file, or of a temporary copy if a nested model was compiled."""
    config = find_compiled_parts(path)
    if config is None:
        yield path
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(path.parent, "loading-"))
            copy_with_config(path, folder / path.name, config)
        except OSError as error:
            raise Unavailable(
                f"No model can be copied in {path.parent} ({why(error)}): is its disk full?"
            ) from error
        yield folder / path.name


@contextmanager
def translated_model_errors() -> Iterator[None]:
    """Translate the errors of a computation for which no image can be at fault.

    Raises ModelRefused if the model cannot be run, Unavailable if this machine cannot run it.
    """
    try:
        yield
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.UnimplementedError,
        ValueError,
        TypeError,
    ) as error:
        raise ModelRefused(f"the model does not run: {error}") from error
    except tf.errors.OpError as error:
        # For example, the GPU has failed or another process uses it.
        reason = error.message.strip().partition("\n")[0]
        raise Unavailable(f"The model does not run on this machine: {reason}") from error


@contextmanager
def _translated_memory_errors() -> Iterator[None]:
    """Raise Unavailable if there is no memory for the model or its computations.

    No image is at fault: every batch of a size takes the same memory, and a retry may succeed.
    """
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise Unavailable(
            "There is no memory left for the model on this machine: start fewer processes, or add memory."
        ) from error


def input_spec_of(
    model: keras.Model, *, resampling: Resampling = MNIST_INPUT.resampling, invert: Invert | None = None
) -> InputSpec:
    """Return the input spec of a network; its size and colours come from the network's input shape.

    If `invert` is left out, a network with MNIST's input shape inverts pictures as for MNIST, and any other
    never does. Raises ModelRefused if the network does not take grey or RGB pictures of one size.
    """
    _check_one_input_and_output(model)
    match tuple(model.inputs[0].shape):
        case (None, int(height), int(width)) | (None, int(height), int(width), 1):
            spec = InputSpec(width=width, height=height, mode="L", resampling=resampling)
        case (None, int(height), int(width), 3):
            spec = InputSpec(width, height, "RGB", resampling, reduction=PHOTO_REDUCTION)
        case other:
            raise ModelRefused(
                f"the model's input is {other}, not pictures of one size: (None, height, width) or "
                "(None, height, width, 1) for grey ones, (None, height, width, 3) for RGB"
            )
    if invert is None:
        invert = MNIST_INPUT.invert if spec.shape == MNIST_INPUT.shape else "never"
    return replace(spec, invert=invert)


def _batch_sizes(picture_bytes: int) -> tuple[int, ...]:
    """Return the batch sizes for pictures of `picture_bytes` bytes each, the smallest first."""
    larger = (_MEDIUM_BATCH, BATCH, LARGE_BATCH)
    return (SMALL_BATCH, *(size for size in larger if size * picture_bytes <= _BATCH_BYTES))


def _check_one_input_and_output(model: keras.Model) -> None:
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs or len(inputs) != 1 or len(outputs) != 1:
        raise ModelRefused("the model must have one input and one output")


def _check_shapes(model: keras.Model, classes: Sequence[str], spec: InputSpec) -> None:
    """Raise ModelRefused unless the model maps (n, *spec.shape) to (n, number of classes).

    The shape of grey pictures may also be (height, width, 1).
    """
    _check_one_input_and_output(model)
    takes, answers = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if takes != (None, *spec.shape) and not (spec.mode == "L" and takes == (None, *spec.shape, 1)):
        raise ModelRefused(f"the model's input is {takes}, not {(None, *spec.shape)}")
    if answers != (None, len(classes)):
        raise ModelRefused(f"the model's output is {answers}, not one of {len(classes)} classes")
