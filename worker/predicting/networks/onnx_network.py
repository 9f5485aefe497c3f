"""A network that ONNX Runtime computes."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from worker.predicting.networks.network import Network

#: ONNX Runtime's level of messages: errors only. They are raised as exceptions, too.
_ERRORS_ONLY: Final = 3


class OnnxNetwork(Network):
    """An ONNX model in ONNX Runtime."""

    def __init__(self, data: bytes, threads: int) -> None:
        """Load an ONNX model. Raises ONNX Runtime's errors."""
        options = onnxruntime.SessionOptions()
        # By default it takes all cores of the host, even those that this container or process may not use.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait actively would take time from the other processes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores of a batch. Raises MemoryError, and ONNX Runtime's errors."""
        try:
            scores: npt.NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        except RuntimeError as error:
            if "allocate memory" in str(error):
                raise MemoryError from error
            raise
        return scores
