"""Predictions are compared with the names of the folders that the images are in."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobs.errors import UserError
from jobs.ledger.jobs.outcomes import Prediction
from jobs.models.dataset import folder_of
from jobs.models.evaluation import MISTAKES
from jobs.models.model import MNIST_INPUT, Model
from labelmill.labels.labelled_jobs import compare_with_known
from labelmill.reporting.evaluation_lines import labelled_lines

MODEL = Model("m", "mlp", "0" * 64, 1, ("ant", "bee"), MNIST_INPUT, None, {}, datetime.now(UTC))


def prediction(index: int, name: str, label: str | None, confidence: float | None = 0.9) -> Prediction:
    error = "corrupt" if label is None else None
    return Prediction(index, name, label, confidence if label else None, error, None, "m")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("pics/ant/1.png", "ant"),
        ("ant/1.png", "ant"),
        ("s3://bucket/photos/ant/1.png", "ant"),
        ("ant/small/1.png", "small"),
        ("1.png", ""),
        ("/1.png", ""),
        ("t10k-images.gz[7]", ""),
    ],
)
def test_the_folder_is_the_one_that_directly_contains_the_image(name: str, folder: str) -> None:
    assert folder_of(name) == folder


def test_errors_are_wrong_corrections_win_and_other_folders_do_not_count() -> None:
    found = compare_with_known(
        [
            prediction(0, "x/ant/0.png", "ant"),
            prediction(1, "x/ant/1.png", "bee", 0.7),
            prediction(2, "x/bee/2.png", None),
            prediction(3, "x/bee/3.png", "ant", 0.8),  # its folder is wrong: it is an ant
            prediction(4, "x/owl/4.png", "ant"),
            prediction(5, "5.png", "ant"),  # corrected, but its folder is not a class
            prediction(6, "x/bee/6.png", "ant"),  # its manifest says so
            prediction(7, "x/bee/7.png", "ant"),  # its manifest says another class
        ],
        MODEL,
        {6: "ant", 7: "owl"},
        {3: "ant", 5: "bee"},
    )
    assert found.figures.confusion == ((3, 1, 0), (0, 0, 1))
    assert (found.errors, found.corrected, found.unlabelled) == (1, 1, 3)
    assert set(found.unlabelled_folders) == {"owl", ""}
    assert [(each.index, each.truth, each.label) for each in found.mistakes] == [(1, "ant", "bee")]
    assert labelled_lines(found)[-1].split() == ["1", "ant", "bee", "0.7000", "x/ant/1.png"]


def test_the_most_confident_mistakes_are_kept() -> None:
    # Given 200 mistakes, more confident towards the middle
    confidences = [1 - abs(place - 100) / 200 for place in range(200)]
    wrong = [prediction(place, "ant/x.png", "bee", each) for place, each in enumerate(confidences)]

    kept = compare_with_known(wrong, MODEL, {}).mistakes
    assert [each.confidence for each in kept] == sorted(confidences, reverse=True)[:MISTAKES]
    assert kept[0].index == 100


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "There is no prediction yet"),
        (("1.png", "2.png"), r"None of the 2 images is in a folder .*\(ant, bee\): they are in no folder"),
        (
            ("owl/1.png",),
            "their labels or folders are owl. Sort the images into one folder per class",
        ),
    ],
)
def test_without_a_label_there_is_nothing_to_compare(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        compare_with_known([prediction(place, name, "ant") for place, name in enumerate(names)], MODEL, {})
