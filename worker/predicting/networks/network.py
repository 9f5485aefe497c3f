"""What a classifier needs of a network, whichever runtime computes it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jobs.errors import Unavailable


class Network(Protocol):
    """What computes the batches of a classifier."""

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities of a batch, float32 (n, classes), as the network computes them.

        There are a few batch sizes. Raises MemoryError, and the runtime's own errors.
        """

    def translated_errors(self) -> AbstractContextManager[None]:
        """Return a block that translates the errors of a computation for which no image can be at fault.

        It raises ModelRefused if the network cannot be run, Unavailable if this machine cannot run it.
        """


def no_memory() -> Unavailable:
    """Return the error if there is no memory for the model or its computations.

    No image is at fault: every batch of a size takes the same memory, and a retry may succeed.
    """
    return Unavailable(
        "There is no memory left for the model on this machine: start fewer processes, or add memory."
    )
