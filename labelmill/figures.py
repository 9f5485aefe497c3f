"""Print figures of an evaluation at the console, for 2 to thousands of classes."""

from __future__ import annotations

import shutil
import sys
from functools import partial

from rich.cells import cell_len

from jobs.evaluation import Figures
from labelmill.reporting.tables import MAX_CLASSES, by_class, most_confused
from labelmill.tables import Column, table_lines
from producer.export import printable


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
        "class                    precision  recall",
        *(f"{printable(row.name):<25}{_share(row.precision):>9}{_share(row.recall):>8}" for row in rows),
        *([f"({left_out:,} more classes, with a higher recall or without images)"] if left_out else []),
    ]


def confusion_lines(figures: Figures) -> list[str]:
    """Return the confusion matrix if it fits the terminal, and otherwise the most frequent confusions."""
    if len(figures.classes) <= MAX_CLASSES:
        matrix = _matrix_lines(figures)
        if max(map(cell_len, matrix)) <= shutil.get_terminal_size().columns:
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
