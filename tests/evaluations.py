"""Evaluations made by hand: what a model would have to answer for them, without a model."""

from __future__ import annotations

import base64
import math
from bisect import bisect_right
from collections.abc import Sequence

from jobs.models.evaluation import (
    CALIBRATION_BINS,
    CONFIDENCE_EDGES,
    NO_ANSWER,
    CalibrationBin,
    Evaluation,
    Mistake,
    pack_answers,
)
from tests.png import png

DIGITS = tuple("0123456789")


def made_evaluation(
    truth: Sequence[int],
    answers: Sequence[int],
    *,
    confidences: Sequence[float] | None = None,
    classes: tuple[str, ...] = DIGITS,
) -> tuple[Evaluation, bytes]:
    """The measures of a model that gives these answers, and the answers as the ledger keeps them."""
    sure = confidences or [
        0.999 if label == answer else 0.6 for label, answer in zip(truth, answers, strict=True)
    ]
    total, right = len(truth), sum(map(int.__eq__, truth, answers))
    confusion = [[0] * (len(classes) + 1) for _ in classes]
    histogram = [0] * (len(CONFIDENCE_EDGES) - 1)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(CALIBRATION_BINS)]
    for label, answer, confidence in zip(truth, answers, sure, strict=True):
        confusion[label][len(classes) if answer == NO_ANSWER else answer] += 1
        if answer != NO_ANSWER:
            histogram[min(bisect_right(CONFIDENCE_EDGES, confidence) - 1, len(histogram) - 1)] += 1
            place = max(0, math.ceil(confidence * CALIBRATION_BINS) - 1)
            bins[place].append((confidence, label == answer))
    calibration = tuple(
        CalibrationBin(
            low=place / CALIBRATION_BINS,
            high=(place + 1) / CALIBRATION_BINS,
            images=len(each),
            confidence=sum(confidence for confidence, _ in each) / len(each) if each else 0.0,
            accuracy=sum(good for _, good in each) / len(each) if each else 0.0,
        )
        for place, each in enumerate(bins)
    )
    wrong = [i for i in range(total) if answers[i] not in (truth[i], NO_ANSWER)]
    wrong.sort(key=lambda index: -sure[index])
    taken = [sum(row[place] for row in confusion) for place in range(len(classes))]
    evaluation = Evaluation(
        total=total,
        correct=right,
        accuracy=right / total,
        accuracy_low=max(0.0, right / total - 0.01),
        accuracy_high=min(1.0, right / total + 0.01),
        classes=classes,
        confusion=tuple(map(tuple, confusion)),
        precision=tuple(row[c] / taken[c] if taken[c] else None for c, row in enumerate(confusion)),
        recall=tuple(row[c] / sum(row) if sum(row) else None for c, row in enumerate(confusion)),
        log_loss=0.0441,
        calibration_error=0.0063,
        calibration=calibration,
        confidence_histogram=tuple(histogram),
        image_microseconds=31.2,
        mistakes=tuple(
            Mistake(
                index=index,
                truth=classes[truth[index]],
                label=classes[answers[index]],
                confidence=sure[index],
                png=_picture(index),
            )
            for index in wrong[:48]
        ),
    )
    return evaluation, pack_answers(answers, truth)


def _picture(number: int, side: int = 28) -> str:
    """A grey picture as base64 of a PNG file, another one for each number."""
    rows = (
        bytes((x * y * 7 + number * 13) % 256 if 6 < x < 21 else 0 for x in range(side)) for y in range(side)
    )
    return base64.b64encode(png(side, side, b"".join(b"\0" + row for row in rows))).decode()
