"""The figures of an evaluation at the console, for few and for many classes."""

from __future__ import annotations

import pytest

from jobs.models.evaluation import Figures
from labelmill.reporting.evaluation_lines import class_lines, confusion_lines, summary_lines


def test_the_summary_has_the_figures_of_all_classes() -> None:
    figures = Figures.from_confusion(("ant", "bee"), ((8, 2, 0), (0, 90, 0)))
    assert summary_lines(figures) == [
        "accuracy            0.9800  (95 % between 0.9300 and 0.9945)",
        "right               98 of 100",
        "macro F1            0.9389",
        "balanced accuracy   0.9000",
    ]


def test_the_matrix_of_few_classes_is_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two classes on a wide terminal, one image of which has no answer
    monkeypatch.setenv("COLUMNS", "80")
    figures = Figures.from_confusion(("ant", "bee"), ((1_200, 2, 1), (0, 9, 0)))
    # Then the matrix is printed with aligned columns
    assert confusion_lines(figures)[1:] == [
        "       ant  bee  none",
        "ant  1,200    2     1",
        "bee      0    9     0",
    ]
    # And on a terminal that is too narrow, the confusions are listed
    monkeypatch.setenv("COLUMNS", "20")
    assert confusion_lines(figures) == ["confused most often", "       2  ant taken for bee"]


def test_of_a_thousand_classes_the_weakest_and_the_most_frequent_confusions_are_printed() -> None:
    # Given 1,000 classes with three images each: of class 700 one is taken for class 3
    names = tuple(f"class {number}" for number in range(1_000))
    confusion = [[0] * 1_001 for _ in names]
    for place, row in enumerate(confusion):
        row[place] = 3
    confusion[700][700], confusion[700][3] = 2, 1
    figures = Figures.from_confusion(names, confusion)

    # Then this is what the lines begin with, and there are not many
    assert confusion_lines(figures) == ["confused most often", "       1  class 700 taken for class 3"]
    lines = class_lines(figures)
    assert lines[1].split() == ["class", "700", "1.0000", "0.6667"]
    assert lines[-1] == "(960 more classes, with a higher recall or without images)"
    assert len(lines) == 42
