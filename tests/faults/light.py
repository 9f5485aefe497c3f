"""A classifier that starts in no time, in the place of `worker.predicting.classifier`.

A process that dies comes back in a moment instead of the seconds that TensorFlow takes, so faults can be
tried hundreds of times, and far more of them hit a chunk than a process that is still starting. What it
answers is written in the picture: an outcome that is another image's shows at once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from jobs.models.model import InputSpec
from tests.faults.pictures import GREY_STEP, LABEL_PIXEL

#: How many images take `PACE_SECONDS` together.
BATCH = 16

#: Seconds a batch takes: without it a chunk would be over before a fault could meet it.
PACE_SECONDS = 0.02


class Predictions(NamedTuple):
    """As the real one."""

    class_index: Any
    confidence: Any
    top: Any


class Classifier:
    """Reads the label out of the picture."""

    batch = BATCH

    def __init__(self, classes: Sequence[str], spec: InputSpec) -> None:
        self.classes = tuple(classes)
        self.spec = spec

    @classmethod
    def load(cls, _path: Path, classes: Sequence[str], spec: InputSpec, *, logits: bool = False) -> Self:  # noqa: ARG003
        """The file is none and is not looked at."""
        return cls(classes, spec)

    def warm_up(self) -> None:
        """It is never cold."""

    def predict(self, pixels: Any, top_k: int | None = None) -> Predictions:
        """uint8 (n, 28, 28): n labels, after `PACE_SECONDS` for each batch. The next classes come next."""
        time.sleep(PACE_SECONDS * -(-len(pixels) // BATCH))
        grey = pixels[(slice(None), *LABEL_PIXEL)].astype(np.int64)
        index, confidence = grey // GREY_STEP, (0.5 + grey / 1000).astype(np.float32)
        if top_k is None:
            return Predictions(index, confidence, None)
        places = np.arange(top_k)
        top = (index[:, None] + places) % len(self.classes), confidence[:, None] / (1 + places)
        return Predictions(index, confidence, top)


def start_keras(_processes: int) -> None:
    """There is nothing to start."""
