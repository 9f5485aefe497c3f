"""A network that Keras and TensorFlow compute: the reference for all other runtimes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import ModelRefused, Unavailable
from jobs.files import temporary_folder
from jobs.models.model import MNIST_INPUT, PHOTO_REDUCTION, InputSpec, Invert, Resampling
from jobs.models.model_file import copy_with_config, find_compiled_parts
from jobs.reading import why
from worker.predicting.networks.network import Network, no_memory
from worker.predicting.tensorflow_runtime import keras, tf

_NO_MEMORY: Final = (MemoryError, tf.errors.ResourceExhaustedError)


class KerasNetwork(Network):
    """A Keras model, traced once for each batch size."""

    large_pictures = 32  # a GPU needs many

    def __init__(
        self, model: keras.Model, classes: Sequence[str], spec: InputSpec, *, logits: bool = False
    ) -> None:
        """Wrap a Keras model, and add a softmax if it answers logits.

        Raises ModelRefused if its shapes are not those of `spec` and `classes`.
        """
        _check_shapes(model, classes, spec)
        self._spec = spec
        self._traced: dict[int, Any] = {}

        def compute(pixels: Any) -> Any:
            scores = tf.cast(model(as_input(model, pixels), training=False), tf.float32)
            return tf.nn.softmax(scores) if logits else scores

        #: Computes the scores, float32 (n, classes), of pixels, a uint8 tensor (n, *spec.shape).
        self.compute = compute

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores of a batch, and trace the model if the size is new.

        Raises MemoryError, and TensorFlow's errors for pixels that it cannot process.
        """
        try:
            # .numpy() waits for the result, because TensorFlow may read the reused buffer in place.
            scores: npt.NDArray[np.float32] = self._traced_for(len(batch))(batch).numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError from error
        return scores

    def _traced_for(self, size: int) -> Any:
        """Return the computation of batches of this size."""
        # keras.Model.predict() would trace each new shape, and leak memory; these shapes are traced once.
        if size not in self._traced:
            signature = [tf.TensorSpec((size, *self._spec.shape), tf.uint8)]
            self._traced[size] = tf.function(self.compute, input_signature=signature, autograph=False)
        return self._traced[size]

    def translated_errors(self) -> AbstractContextManager[None]:
        """Return `translated_model_errors`, for the classifier."""
        return translated_model_errors()


def as_input(model: keras.Model, images: Any) -> Any:
    """Return grey images, (n, height, width), with an axis of one channel if the model takes one."""
    return images[..., tf.newaxis] if len(model.inputs[0].shape) > len(images.shape) else images


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
        with _without_compilation(path) as loadable:
            return keras.saving.load_model(loadable, compile=False, safe_mode=True)
    except (SoftTimeLimitExceeded, Unavailable):
        raise
    except _NO_MEMORY as error:
        raise no_memory() from error
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
