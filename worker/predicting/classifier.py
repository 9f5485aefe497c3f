"""A trained model, ready to answer: pixels in, one class and its confidence per image out.

`worker.predicting.decode` made the pixels; `worker.predicting.pipeline` turns the answers into outcomes.
Not safe to share between threads: one classifier per process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import ModelRefused, Unavailable
from jobs.model import MNIST_INPUT, InputSpec, Invert, Resampling
from worker.predicting.tensorflow_runtime import configure_threads, keras, set_threads, tf

__all__ = ["BATCH", "Classifier", "Predictions", "configure_threads"]

# Images per call of the model. Few sizes only: every other shape would be traced and kept for good. Measured
# on one core with the 784-512-512-10 network: 256 take 17 us each, 512 take 16, 2048 take 14.
BATCH: Final = 512

# The smallest: somebody waits for a lone image, which takes 0.8 ms in it, and 7.6 ms in one of 512.
SMALL_BATCH: Final = 32

# In between: of fewer images than BATCH, and of pictures too large for it.
_MEDIUM_BATCH: Final = 128

# The largest, for small pictures only.
LARGE_BATCH: Final = 2048

# A batch that is filled to this share goes as one: smaller ones would be as many images, in more calls.
_NEARLY_FULL: Final = 0.75

# The pixels of a batch, but for the smallest: what a network computes from them takes many times as much.
_BATCH_BYTES: Final = 2 * 1024 * 1024

# How far from 1 the sum of a row may be and still be probabilities: a softmax in bfloat16 strays by 0.004.
_SUM_TOLERANCE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Predictions:
    """The answers for n images, in their order."""

    #: int64, shape (n,): the place of the label in the model's classes; -1 where the model answered
    #: something that is not a probability distribution (NaN, infinity, a negative, a wrong sum).
    class_index: npt.NDArray[np.int64]
    #: float32, shape (n,): the probability of that class, 0 to 1; 0 where the index is -1.
    confidence: npt.NDArray[np.float32]


class Classifier:
    """One model, loaded."""

    def __init__(self, model: keras.Model, classes: Sequence[str], spec: InputSpec) -> None:
        """Wrap a Keras model. Raises ModelRefused if its shapes are not those of `spec` and `classes`."""
        _check_shapes(model, classes, spec)
        self.classes = tuple(classes)
        self.spec = spec
        self._sizes = _batch_sizes(math.prod(spec.shape))
        #: How many images are best given to `predict` at once.
        self.batch = self._sizes[-1]
        self._padded = {size: np.zeros((size, *spec.shape), np.uint8) for size in self._sizes}

        has_channel = len(model.inputs[0].shape) > len(spec.shape) + 1

        def run(pixels: Any) -> tuple[Any, Any]:
            if has_channel:
                pixels = pixels[..., tf.newaxis]
            scores = tf.cast(model(pixels, training=False), tf.float32)
            # Every comparison with NaN is false, so NaN needs no case of its own.
            sound = tf.reduce_all((scores >= 0) & (scores <= 1 + _SUM_TOLERANCE), axis=1) & (
                tf.abs(tf.reduce_sum(scores, axis=1) - 1) <= _SUM_TOLERANCE
            )
            return scores, sound

        def answer(pixels: Any) -> tuple[Any, Any]:
            scores, sound = run(pixels)
            best = tf.argmax(scores, axis=1, output_type=tf.int64)
            confidence = tf.minimum(tf.reduce_max(scores, axis=1), 1.0)
            return tf.where(sound, best, -1), tf.where(sound, confidence, 0.0)

        def distribution(pixels: Any) -> Any:
            scores, sound = run(pixels)
            return tf.where(sound[:, tf.newaxis], scores, 0.0)

        # keras.Model.predict() traces anew for every shape and leaks as it does; this traces once for each.
        def traced(function: Any, size: int) -> Any:
            signature = [tf.TensorSpec((size, *spec.shape), tf.uint8)]
            return tf.function(function, input_signature=signature, autograph=False)

        self._answer = {size: traced(answer, size) for size in self._padded}
        self._distribution = {size: traced(distribution, size) for size in self._padded}

    @classmethod
    def load(cls, path: Path, classes: Sequence[str], spec: InputSpec, *, threads: int | None = None) -> Self:
        """Load a `.keras` file whose SHA-256 the caller has checked, on `threads` intra-op threads.

        Raises ModelRefused if the file is of another format, does not load safely, or does not fit `spec`
        and `classes`.
        """
        if threads is not None:
            set_threads(threads)
        return cls(load_model(path), classes, spec)

    def warm_up(self) -> None:
        """Trace and run the model for each size of batch, so that the first image does not pay for it.

        Raises ModelRefused if the model cannot be run, Unavailable where this machine cannot run it, or has
        no memory for it: no image was looked at, so whatever goes wrong is the fault of none.
        """
        with blaming_no_image():
            for batch in self._padded.values():
                self.predict(batch)

    def predict(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        """Classify uint8 pixels of shape (n, *spec.shape): n answers in the order of the n images.

        Raises ValueError for other shapes and types, Unavailable where the machine has no memory for a batch,
        and what TensorFlow makes of pixels that the model cannot take.
        """
        with _noticing_no_memory():
            count = len(pixels)
            class_index = np.empty(count, np.int64)
            confidence = np.empty(count, np.float32)
            for start, size, batch in self._batches(pixels):
                # .numpy() waits for the answer: TensorFlow may read the buffer in place, without a copy.
                best, likely = (tensor.numpy() for tensor in self._answer[len(batch)](batch))
                if best.shape != (len(batch),):
                    raise ModelRefused(f"the model answered {len(best)} rows for {len(batch)} images")
                class_index[start : start + size] = best[:size]
                confidence[start : start + size] = likely[:size]
            return Predictions(class_index, confidence)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The probability of each class, float32 (n, number of classes), for the images that `predict` takes;
        a row of zeros where it gives no label. For who measures: predicting needs the best of them only.

        Raises what `predict` does.
        """
        with _noticing_no_memory():
            answers = np.empty((len(pixels), len(self.classes)), np.float32)
            for start, size, batch in self._batches(pixels):
                answers[start : start + size] = self._distribution[len(batch)](batch).numpy()[:size]
            return answers

    def _batches(self, pixels: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """Batches of few sizes, each with the place of its first image and how many images count."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.spec.shape:
            raise ValueError(f"expected uint8 {('n', *self.spec.shape)}, got {pixels.dtype} {pixels.shape}")
        start = 0
        while start < len(pixels):
            left = len(pixels) - start
            padded = self._padded[self._size_for(left)]
            batch = pixels[start : start + len(padded)]
            size = len(batch)
            if size < len(padded):
                # What is left in the buffer's tail from an earlier call is classified too, and dropped.
                padded[:size] = batch
                batch = padded
            yield start, size, batch
            start += size

    def _size_for(self, left: int) -> int:
        """The smallest that holds all, for a few images or where they nearly fill it; else the largest that
        gets full.
        """
        holding = next((size for size in self._sizes if size >= left), None)
        if holding is not None and (holding in self._sizes[:2] or left >= _NEARLY_FULL * holding):
            return holding
        return max(size for size in self._sizes if size <= left)


def load_model(path: Path) -> keras.Model:
    """The network in a `.keras` file. Raises ModelRefused if it is of another format or does not load
    safely, Unavailable where the machine has no memory for it.
    """
    if path.suffix != ".keras":  # .h5 and SavedModel can run code as they load
        raise ModelRefused(f"{path.name} is not a .keras file, the one format that is loaded")
    try:
        with _noticing_no_memory():
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (SoftTimeLimitExceeded, Unavailable):
        raise
    except Exception as error:
        # Keras raises nearly anything on a file it can't use; its first line says enough.
        reason = str(error).strip().partition("\n")[0]
        raise ModelRefused(f"{path.name} could not be loaded: {reason}") from error


@contextmanager
def blaming_no_image() -> Iterator[None]:
    """Around what a model computes where no image is to blame for whatever goes wrong: raises ModelRefused if
    the model cannot be run, Unavailable where this machine cannot run it.
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
        # A GPU that is gone, or in the hands of somebody else.
        reason = error.message.strip().partition("\n")[0]
        raise Unavailable(f"The model does not run on this machine: {reason}") from error


@contextmanager
def _noticing_no_memory() -> Iterator[None]:
    """Raises Unavailable where there is no memory for the model, or for what it computes. The machine's
    fault, and no image's: a batch takes the same memory whatever is in it, and may have it yet.
    """
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise Unavailable("There is no memory left for the model on this machine.") from error


def input_spec_of(
    model: keras.Model, *, resampling: Resampling = MNIST_INPUT.resampling, invert: Invert | None = None
) -> InputSpec:
    """How a picture becomes this network's input, whose size and colours the network knows itself. Where
    `invert` is left out, pictures are inverted as for MNIST by a network that takes what MNIST is, and
    never by others.

    Raises ModelRefused if it takes something other than pictures of one size, grey or RGB.
    """
    _check_ends(model)
    match tuple(model.inputs[0].shape):
        case (None, int(height), int(width)) | (None, int(height), int(width), 1):
            spec = InputSpec(width=width, height=height, mode="L", resampling=resampling)
        case (None, int(height), int(width), 3):
            spec = InputSpec(width=width, height=height, mode="RGB", resampling=resampling)
        case other:
            raise ModelRefused(
                f"the model takes {other}, not pictures of one size: (None, height, width) or "
                "(None, height, width, 1) for grey ones, (None, height, width, 3) for RGB"
            )
    if invert is None:
        invert = MNIST_INPUT.invert if spec.shape == MNIST_INPUT.shape else "never"
    return replace(spec, invert=invert)


def _batch_sizes(picture_bytes: int) -> tuple[int, ...]:
    """The sizes of batches for pictures of so many bytes, the smallest first."""
    larger = (_MEDIUM_BATCH, BATCH, LARGE_BATCH)
    return (SMALL_BATCH, *(size for size in larger if size * picture_bytes <= _BATCH_BYTES))


def _check_ends(model: keras.Model) -> None:
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs or len(inputs) != 1 or len(outputs) != 1:
        raise ModelRefused("the model must have one input and one output")


def _check_shapes(model: keras.Model, classes: Sequence[str], spec: InputSpec) -> None:
    """Raise ModelRefused unless the model maps (n, *spec.shape) to (n, number of classes). What grey pictures
    have may be (height, width, 1) as well.
    """
    _check_ends(model)
    takes, answers = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if takes != (None, *spec.shape) and not (spec.mode == "L" and takes == (None, *spec.shape, 1)):
        raise ModelRefused(f"the model takes {takes}, not {(None, *spec.shape)}")
    if answers != (None, len(classes)):
        raise ModelRefused(f"the model answers {answers}, not one of {len(classes)} classes")
