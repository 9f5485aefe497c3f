"""What a classifier needs of a network, whichever runtime computes it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from jobs.errors import Unavailable

#: On a CPU, the layers of so few pictures stay in its cache. With MobileNet and EfficientNet, they take 8 to
#: 35 % less time than 32 at a time, with ResNet50 as much. A single picture does not wait for 31 others.
FEW_PICTURES: Final = 2


class Network(Protocol):
    """What computes the batches of a classifier."""

    #: How many large pictures it computes at a time.
    large_pictures: int = FEW_PICTURES

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities of a batch, float32 (n, classes), as the network computes them.

        There are a few batch sizes. Raises MemoryError, and the runtime's own errors.
        """

    def translated_errors(self) -> AbstractContextManager[None]:
        """Return a block that translates the errors of a computation for which no image can be at fault.

        It raises ModelRefused if the network cannot be run, Unavailable if this machine cannot run it. By
        default it translates nothing: if another runtime than Keras fails, a worker does without it.
        """
        return nullcontext()


def no_memory() -> Unavailable:
    """Return the error if there is no memory for the model or its computations.

    No image is at fault: every batch of a size takes the same memory, and a retry may succeed.
    """
    return Unavailable(
        "There is no memory left for the model on this machine: start fewer processes, or add memory."
    )
