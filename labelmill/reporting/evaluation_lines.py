"""Print figures of an evaluation at the console, for 2 to thousands of classes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from typing import Any, Final

from rich.cells import cell_len

from jobs.models.evaluation import Figures
from labelmill.console.tables import Column, table_lines, terminal_width
from labelmill.console.terminal import pluralize, say
from labelmill.labels.labelled_jobs import LabelledEvaluation
from labelmill.reporting.report_rows import MAX_CLASSES, by_class, most_confused
from producer.export import printable

#: Mistakes that are listed on a terminal.
_SHOWN_MISTAKES: Final = 10

_MISTAKES: Final = (
    Column("index", lambda mistake: f"{mistake.index}", right=True),
    Column("true", attrgetter("truth"), min_width=8),
    Column("label", attrgetter("label"), min_width=8),
    Column("confidence", lambda mistake: f"{mistake.confidence:.4f}", right=True),
    Column("name", attrgetter("name"), min_width=10),
)

_CLASSES: Final = (
    Column(f"{'class':<23}", attrgetter("name"), min_width=10),
    Column("precision", lambda row: _share(row.precision), right=True),
    Column("recall", lambda row: _share(row.recall), right=True),
)


def figures_to_json(figures: Figures) -> dict[str, Any]:
    """Return all figures as a dictionary, for `--json`."""
    derived = {"macro_f1": figures.macro_f1, "balanced_accuracy": figures.balanced_accuracy}
    return asdict(figures) | derived


def labelled_to_json(found: LabelledEvaluation) -> dict[str, Any]:
    """Return the evaluation of labelled images as a dictionary, for `--json`."""
    others = {name: value for name, value in asdict(found).items() if name not in ("model", "figures")}
    return {"model": found.model, **figures_to_json(found.figures), **others}


def labelled_lines(found: LabelledEvaluation) -> list[str]:
    """Return the evaluation of labelled images for the console."""
    lines = summary_lines(found.figures)
    if found.errors:
        lines.append(f"without an answer   {found.errors:,}, counted as wrong")
    if found.corrected:
        lines.append(f"corrected           {found.corrected:,}, by their corrections")
    lines += ["", *class_lines(found.figures), "", *confusion_lines(found.figures)]
    if found.mistakes:
        lines += [
            "",
            "most confident mistakes",
            *table_lines(_MISTAKES, found.mistakes[:_SHOWN_MISTAKES], terminal_width()),
        ]
    return lines


def report_left_out(found: LabelledEvaluation) -> None:
    """Print how many images were left out, and why; nothing if none was."""
    if found.learnt:
        images = pluralize(found.learnt, "image")
        say(
            f"left out {images} that had been corrected before the model was trained: it may have learnt them"
        )
    if found.unlabelled:
        named = ", ".join(printable(name) or "no folder" for name in found.unlabelled_folders)
        images = pluralize(found.unlabelled, "image")
        say(f"left out {images} whose label or folder is not a class of the model ({named})")


def summary_lines(figures: Figures) -> list[str]:
    """Return lines with the figures of all classes together."""
    low, high = figures.accuracy_low, figures.accuracy_high
    return [
        f"accuracy            {figures.accuracy:.4f}  (95 % between {low:.4f} and {high:.4f})",
        f"right               {figures.correct:,} of {figures.total:,}",
        f"macro F1            {figures.macro_f1:.4f}",
        f"balanced accuracy   {figures.balanced_accuracy:.4f}",
    ]


def class_lines(figures: Figures) -> list[str]:
    """Return a heading and a line for each class; of many classes, for those with the lowest recall."""
    rows = by_class(figures, None)
    left_out = len(figures.classes) - len(rows)
    return [
        *table_lines(_CLASSES, rows, terminal_width()),
        *([f"({left_out:,} more classes, with a higher recall or without images)"] if left_out else []),
    ]


def confusion_lines(figures: Figures) -> list[str]:
    """Return the confusion matrix if it fits the terminal, and otherwise the most frequent confusions."""
    if len(figures.classes) <= MAX_CLASSES:
        matrix = _matrix_lines(figures)
        if max(map(cell_len, matrix)) <= terminal_width():
            return ["confusion matrix: a row per true class, a column per label", *matrix]
    confused = most_confused(figures)
    return [
        "confused most often",
        *(
            f"{each.count:>8,}  {printable(each.truth)} taken for {printable(each.label)}"
            for each in confused
        ),
    ]


def _matrix_lines(figures: Figures) -> list[str]:
    names = [*figures.classes, "none"]
    if not any(row[-1] for row in figures.confusion):
        names.pop()
    columns = [
        Column("", lambda row: names[row]),
        *(
            Column(printable(name), partial(_count, figures, place), right=True)
            for place, name in enumerate(names)
        ),
    ]
    return table_lines(columns, range(len(figures.classes)), sys.maxsize)


def _count(figures: Figures, place: int, row: int) -> str:
    return f"{figures.confusion[row][place]:,}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
