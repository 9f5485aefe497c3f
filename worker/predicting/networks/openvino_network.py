"""A network that OpenVINO computes."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import numpy.typing as npt
import openvino

from worker.predicting.networks.network import Network


@functools.cache
def _core() -> openvino.Core:
    """Return this process's OpenVINO, which is never unloaded.

    The thread that loads the CPU plugin gets an alternate signal stack, which is unmapped when the plugin is
    unloaded. If another thread unloads it, the next signal kills the process with SIGSEGV.
    """
    return openvino.Core()


class OpenVinoNetwork(Network):
    """An ONNX model in OpenVINO, compiled once for each batch size."""

    def __init__(self, data: bytes, threads: int, *, precision: Literal["f32", "bf16"] = "f32") -> None:
        """Read an ONNX model. Raises OpenVINO's errors."""
        self._model = _core().read_model(model=data)
        self._options = {
            # By default it computes in bfloat16 where the processor can, which changes labels.
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # otherwise the threads of all processes get the same cores
        }
        self._compiled: dict[int, openvino.CompiledModel] = {}

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores of a batch, and compile the model if the size is new.

        Raises MemoryError, and OpenVINO's errors.
        """
        try:
            if len(batch) not in self._compiled:
                self._model.reshape(list(batch.shape))
                self._compiled[len(batch)] = _core().compile_model(self._model, "CPU", self._options)
            scores: npt.NDArray[np.float32] = self._compiled[len(batch)](batch)[0]
        except RuntimeError as error:
            if "bad_alloc" in str(error) or "out of memory" in str(error):
                raise MemoryError from error
            raise
        return scores
