"""How good a model is, measured the way it is served: the same `prepare`, the same `Classifier`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.predicting.classifier import Classifier
from worker.predicting.decode import prepare_arrays


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of classifying labelled images."""

    accuracy: float  # correct / total, 0 to 1
    correct: int
    total: int
    #: Per class name, how many of its images were recognised, and how many there are.
    correct_by_class: dict[str, int]
    total_by_class: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for the ledger."""
        return asdict(self)


def evaluate(
    classifier: Classifier, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> Evaluation:
    """Classify `images`, uint8 (n, height, width), and compare with `labels`, uint8 (n,), class places.

    An image the model has no sound answer for counts as wrong. Raises ValueError if there is no image, the
    numbers of images and labels differ, or a label has no class.
    """
    if not len(images) or len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: nothing to compare")
    classes = classifier.classes
    if labels.max() >= len(classes):
        raise ValueError(f"label {labels.max()} is not one of the model's {len(classes)} classes")
    right = classifier.predict(prepare_arrays(images, classifier.spec)).class_index == labels
    correct = np.bincount(labels[right], minlength=len(classes)).tolist()
    total = np.bincount(labels, minlength=len(classes)).tolist()
    return Evaluation(
        accuracy=float(right.mean()),
        correct=int(right.sum()),
        total=len(labels),
        correct_by_class=dict(zip(classes, correct, strict=True)),
        total_by_class=dict(zip(classes, total, strict=True)),
    )
