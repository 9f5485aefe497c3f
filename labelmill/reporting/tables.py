"""The report's figures, brought into the rows in which the page shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobs.evaluation import NO_ANSWER, Evaluation, Mistake
from jobs.promotion import mcnemar

#: Up to so many classes the confusion matrix is drawn; of more, only what was confused most often is listed.
MOST_CLASSES: Final = 40

#: How many confusions are listed.
_LISTED: Final = 15


@dataclass(frozen=True, slots=True)
class Cell:
    """A place in the confusion matrix."""

    count: int
    shade: float  # 0 for none to 1 for the most of its kind
    kind: str  # "right", "wrong"; "none" where nothing is


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """What the images of one class were taken for; the last cell counts those without an answer."""

    truth: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Confused:
    """How often one class was taken for another."""

    truth: str
    label: str
    count: int


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class, by both models; None where there is nothing to tell."""

    name: str
    images: int
    precision: float | None
    recall: float | None
    their_precision: float | None
    their_recall: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models on the same images."""

    both: int  # right
    gained: int  # right by this one alone
    lost: int  # right by the other alone
    neither: int
    p: float  # McNemar's


@dataclass(frozen=True, slots=True)
class ShownMistake:
    """A mistake, and what the other model made of the same image."""

    mistake: Mistake
    theirs: str | None  # None where the other has not seen it, or had no answer
    they_are_right: bool


def confusion_matrix(evaluation: Evaluation) -> list[MatrixRow]:
    """The matrix with its shades. They follow the logarithm: one mistake among 10,000 right answers must be
    seen. Right and wrong have a scale each. The column without an answer is there where one is.
    """
    rows = evaluation.confusion
    columns = len(evaluation.classes) + any(row[-1] for row in rows)
    most = {
        "right": max(row[place] for place, row in enumerate(rows)),
        "wrong": max(
            count for truth, row in enumerate(rows) for place, count in enumerate(row) if place != truth
        ),
    }

    def cell(truth: int, place: int) -> Cell:
        count = rows[truth][place]
        kind = "right" if place == truth else "wrong"
        if not count:
            return Cell(0, 0.0, "none")
        return Cell(count, math.log1p(count) / math.log1p(most[kind]), kind)

    return [
        MatrixRow(name, tuple(cell(truth, place) for place in range(columns)))
        for truth, name in enumerate(evaluation.classes)
    ]


def most_confused(evaluation: Evaluation) -> list[Confused]:
    """What was taken for what most often, the most frequent first."""
    names = evaluation.classes
    found = [
        Confused(names[truth], names[place], count)
        for truth, row in enumerate(evaluation.confusion)
        for place, count in enumerate(row[:-1])
        if count and place != truth
    ]
    return sorted(found, key=lambda each: -each.count)[:_LISTED]


def by_class(evaluation: Evaluation, theirs: Evaluation | None) -> list[ClassRow]:
    """Precision and recall of each class, beside those of the other model on the same classes, if any."""
    nothing: Sequence[float | None] = [None] * len(evaluation.classes)
    return [
        ClassRow(name, sum(row), *shares)
        for name, row, *shares in zip(
            evaluation.classes,
            evaluation.confusion,
            evaluation.precision,
            evaluation.recall,
            theirs.precision if theirs else nothing,
            theirs.recall if theirs else nothing,
            strict=True,
        )
    ]


def compare_answers(ours: bytes, theirs: bytes) -> Pair:
    """Both models' answers to the same images, each as `jobs.ledger.models` keeps them."""
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for label, one, other in zip(ours[1::2], ours[::2], theirs[::2], strict=True):
        counts[one == label, other == label] += 1
    gained, lost = counts[True, False], counts[False, True]
    return Pair(counts[True, True], gained, lost, counts[False, False], mcnemar(gained, lost))


def shown_mistakes(evaluation: Evaluation, theirs: bytes | None) -> list[ShownMistake]:
    """The mistakes, each with the other model's answer to that image where `theirs` has it."""
    shown = []
    for mistake in evaluation.mistakes:
        answer = NO_ANSWER if theirs is None else theirs[2 * mistake.index]
        label = None if answer == NO_ANSWER else evaluation.classes[answer]
        shown.append(ShownMistake(mistake, label, label == mistake.truth))
    return shown
