"""The evaluation of a model on labelled images: the measures, as they are stored and shown.

`worker.learning.evaluation` computes them, and `jobs.models.promotion` judges by them.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

#: Edges of the bins for confidences: bin i holds edges[i] <= confidence < edges[i + 1], the last one also its
#: upper edge. Finer towards 1, because most of a good model's confidences are there.
CONFIDENCE_EDGES: Final = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)

#: How many bins of equal width compare confidence with accuracy.
CALIBRATION_BINS: Final = 15

#: The standard normal distribution's 97.5th percentile, for 95 % intervals.
_Z_95: Final = 1.959963984540054

#: The number of mistakes that are kept to be shown: one page.
MISTAKES: Final = 48

#: The class index in stored answers if the model gave no answer.
NO_ANSWER: Final = 65_535

#: Bytes of one image in stored answers: the predicted class index and the true one, uint16, little-endian.
ANSWER_BYTES: Final = 4


class Part(StrEnum):
    """The images that a model is evaluated on."""

    TEST = "test"  # the data's own test set
    LIVE = "live"  # corrections that no model is trained on


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The images with a confidence between `low` and `high`."""

    low: float
    high: float
    images: int
    confidence: float  # their mean confidence, 0 if there is no image
    accuracy: float  # the share of them that got the right label


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that got the wrong label."""

    index: int  # in the evaluation set, from 0
    truth: str
    label: str
    confidence: float
    png: str  # the image, as base64 of a PNG file


@dataclass(frozen=True, slots=True)
class Figures:
    """How well a model's labels agree with the true ones: all that the confusion matrix says."""

    total: int
    correct: int
    accuracy: float  # correct / total, 0 to 1
    accuracy_low: float  # Wilson's 95 % interval
    accuracy_high: float
    classes: tuple[str, ...]
    #: confusion[t][p]: images of class t that got label p; the last column counts those without an answer.
    confusion: tuple[tuple[int, ...], ...]
    #: By class, in their order: right / all that got this label; None if none did.
    precision: tuple[float | None, ...]
    #: By class: right / all of this class; None if there is none.
    recall: tuple[float | None, ...]

    @classmethod
    def from_confusion(
        cls, classes: tuple[str, ...], confusion: Sequence[Sequence[int]], **more: Any
    ) -> Self:
        """Compute the figures of at least one image. `more` are the fields of a subclass."""
        total = sum(map(sum, confusion))
        right = [row[place] for place, row in enumerate(confusion)]
        predicted = [sum(column) for column in zip(*confusion, strict=True)][:-1]
        low, high = wilson(sum(right), total)
        return cls(
            total=total,
            correct=sum(right),
            accuracy=sum(right) / total,
            accuracy_low=low,
            accuracy_high=high,
            classes=classes,
            confusion=tuple(map(tuple, confusion)),
            precision=tuple(
                part / all_ if all_ else None for part, all_ in zip(right, predicted, strict=True)
            ),
            recall=tuple(
                part / sum(row) if any(row) else None for part, row in zip(right, confusion, strict=True)
            ),
            **more,
        )

    @property
    def macro_f1(self) -> float:
        """Return the mean F1 of the classes that have images, 0 to 1.

        A class's F1 is 2PR / (P + R) with precision P and recall R; 0 if none of its images is right.
        """
        shares = zip(self.precision, self.recall, strict=True)
        scores = [
            2 * precision * recall / (precision + recall) if precision and recall else 0.0
            for precision, recall in shares
            if recall is not None
        ]
        return sum(scores) / len(scores)

    @property
    def balanced_accuracy(self) -> float:
        """Return the mean recall of the classes that have images, 0 to 1."""
        recalls = [recall for recall in self.recall if recall is not None]
        return sum(recalls) / len(recalls)

    @property
    def label_histogram(self) -> tuple[int, ...]:
        """Return how many images got each label."""
        return tuple(sum(row[place] for row in self.confusion) for place in range(len(self.classes)))


@dataclass(frozen=True, slots=True)
class Evaluation(Figures):
    """The result of running a model on labelled images."""

    log_loss: float  # mean of -ln p(truth), nats
    calibration_error: float  # expected calibration error over CALIBRATION_BINS, 0 to 1
    calibration: tuple[CalibrationBin, ...]
    #: How many images with an answer have a confidence in each bin of CONFIDENCE_EDGES.
    confidence_histogram: tuple[int, ...]
    image_microseconds: float  # time per image in one process, on full batches
    mistakes: tuple[Mistake, ...]  # highest confidence first, a few dozen at most

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `asdict` returned, from JSON. Raises TypeError on unknown or missing fields."""
        return cls(
            **{
                **value,
                "classes": tuple(value["classes"]),
                "confusion": tuple(map(tuple, value["confusion"])),
                "precision": tuple(value["precision"]),
                "recall": tuple(value["recall"]),
                "calibration": tuple(CalibrationBin(**each) for each in value["calibration"]),
                "confidence_histogram": tuple(value["confidence_histogram"]),
                "mistakes": tuple(Mistake(**each) for each in value["mistakes"]),
            }
        )


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return Wilson's score interval for an accuracy, with a confidence level of 95 %.

    With p = correct / total and n = total, (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927. The
    textbook's p -+ z sqrt(p(1-p)/n) is too narrow near 1, the range of good models.
    """
    share, z = correct / total, _Z_95
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def pack_answers(predicted: Sequence[int], truth: Sequence[int]) -> bytes:
    """Return answers as they are stored. Raises ValueError if there is not one prediction for each truth."""
    return _swapped(
        array("H", [index for pair in zip(predicted, truth, strict=True) for index in pair])
    ).tobytes()


def unpack_answers(stored: bytes) -> tuple[Sequence[int], Sequence[int]]:
    """Return the predicted class indexes, some of them NO_ANSWER, and the true ones."""
    indexes = array("H")
    indexes.frombytes(stored)
    indexes = _swapped(indexes)
    return indexes[::2], indexes[1::2]


def _swapped(indexes: array[int]) -> array[int]:
    """Convert between this machine's byte order and little-endian."""
    if sys.byteorder == "big":
        indexes.byteswap()
    return indexes
