"""Turn the report's figures into the rows that the page shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobs.ledger.learning.models import StoredEvaluation
from jobs.models.evaluation import NO_ANSWER, Evaluation, Figures, Mistake, unpack_answers
from jobs.models.promotion import Compared, compare_answers

#: With more classes than this, no matrix is shown, only the most frequent confusions and the classes with the
#: lowest recall.
MAX_CLASSES: Final = 40

#: How many confusions are listed.
_MAX_CONFUSIONS: Final = 15


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix."""

    count: int
    shade: float  # from 0 (no images) to 1 (the largest count of its kind)
    kind: str  # "right" or "wrong"; "none" if the count is 0


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """How the images of one class were classified, by predicted class. The last cell can be for no answer."""

    truth: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Confused:
    """How often one class was mistaken for another."""

    truth: str
    label: str
    count: int


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class, with the figures of both models; None if a figure is not known."""

    name: str
    images: int
    precision: float | None
    recall: float | None
    their_precision: float | None
    their_recall: float | None


@dataclass(frozen=True, slots=True)
class ShownMistake:
    """A mistake, and the other model's answer to the same image."""

    mistake: Mistake
    theirs: str | None  # None if the other model has not seen the image, or had no answer
    they_are_right: bool


@dataclass(frozen=True, slots=True)
class EvaluatedSet:
    """The figures of both models on one set; None without another model that saw the same images."""

    name: str
    evaluation: Evaluation
    theirs: Evaluation | None
    pair: Compared | None
    #: Stored mistakes of either model that the other one does not make.
    now_right: tuple[ShownMistake, ...]
    now_wrong: tuple[ShownMistake, ...]


def evaluated_set(name: str, ours: StoredEvaluation, theirs: StoredEvaluation | None) -> EvaluatedSet:
    """Compare two models on one set of images."""
    if theirs is None:
        return EvaluatedSet(name, ours.evaluation, None, None, (), ())
    return EvaluatedSet(
        name,
        ours.evaluation,
        theirs.evaluation,
        compare_answers(ours.answers, theirs.answers),
        tuple(each for each in shown_mistakes(theirs.evaluation, ours.answers) if each.they_are_right),
        tuple(each for each in shown_mistakes(ours.evaluation, theirs.answers) if each.they_are_right),
    )


def confusion_matrix(evaluation: Figures) -> list[MatrixRow]:
    """Return the confusion matrix with its shades.

    The shades are logarithmic, so that one mistake among 10,000 right answers is visible. Right and wrong
    answers have scales of their own. The column for no answer is left out if it would be empty.
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


def most_confused(evaluation: Figures) -> list[Confused]:
    """Return the confusions in descending order of frequency, at most _MAX_CONFUSIONS of them."""
    names = evaluation.classes
    found = [
        Confused(names[truth], names[place], count)
        for truth, row in enumerate(evaluation.confusion)
        for place, count in enumerate(row[:-1])
        if count and place != truth
    ]
    return sorted(found, key=lambda each: -each.count)[:_MAX_CONFUSIONS]


def by_class(evaluation: Figures, theirs: Figures | None) -> list[ClassRow]:
    """Return each class's precision and recall, with those of the other model if there is one.

    Of more than MAX_CLASSES classes, return those with the lowest recall, in ascending order.
    """
    nothing: Sequence[float | None] = [None] * len(evaluation.classes)
    rows = [
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
    if len(rows) > MAX_CLASSES:
        rows = sorted(
            (row for row in rows if row.recall is not None), key=lambda row: (row.recall or 0, -row.images)
        )
    return rows[:MAX_CLASSES]


def shown_mistakes(evaluation: Evaluation, theirs: bytes | None) -> list[ShownMistake]:
    """Return the mistakes, each with the other model's answer to that image if `theirs` has one."""
    answers = unpack_answers(theirs)[0] if theirs is not None else None
    shown = []
    for mistake in evaluation.mistakes:
        answer = NO_ANSWER if answers is None else answers[mistake.index]
        label = None if answer == NO_ANSWER else evaluation.classes[answer]
        shown.append(ShownMistake(mistake, label, label == mistake.truth))
    return shown
