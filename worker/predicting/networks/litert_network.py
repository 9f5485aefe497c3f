"""A network that LiteRT computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from worker.predicting.networks.network import Network


class LiteRtNetwork(Network):
    """A TensorFlow Lite model in LiteRT, with an interpreter for each batch size."""

    large_pictures = 1  # MobileNetV2 takes a sixth less time than with two

    def __init__(self, data: bytes, threads: int) -> None:
        """Keep a TensorFlow Lite model. Its interpreters are made when they are needed."""
        self._data = data
        self._threads = threads
        self._interpreters: dict[int, Interpreter] = {}

    def run(self, batch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores of a batch; make an interpreter if the size is new. Raises LiteRT's errors."""
        interpreter = self._interpreters.get(len(batch))
        if interpreter is None:
            interpreter = Interpreter(model_content=self._data, num_threads=self._threads)
            interpreter.resize_tensor_input(_index(interpreter.get_input_details()), batch.shape)
            interpreter.allocate_tensors()
            self._interpreters[len(batch)] = interpreter
        interpreter.set_tensor(_index(interpreter.get_input_details()), batch)
        interpreter.invoke()
        scores: npt.NDArray[np.float32] = interpreter.get_tensor(_index(interpreter.get_output_details()))
        return scores


def _index(details: list[dict[str, Any]]) -> int:
    """Return the index of the only input or output."""
    index: int = details[0]["index"]
    return index
