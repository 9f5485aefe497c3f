"""Hints about the classes of a dataset."""

from __future__ import annotations

import pytest

from labelmill.datasets.hints import hint_lines, similar_names


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("Crow", "crow", "jay"), [("Crow", "crow")]),
        (("cat", "cats", "fox", "foxes"), [("cat", "cats"), ("fox", "foxes")]),
        (("magpie", "magpye", "mapgie"), [("magpie", "magpye"), ("magpie", "mapgie")]),
        (("cat", "bat", "10", "11", "class10", "class11", "s", "es"), []),
    ],
)
def test_class_names_that_differ_by_case_plural_or_a_letter_are_similar(
    names: tuple[str, ...], pairs: list[tuple[str, str]]
) -> None:
    assert similar_names(names) == pairs


def test_few_test_images_and_unequal_classes_are_said() -> None:
    # Given a class with 9 test images, and one with less than a tenth of another's images
    counts = {"crow": (500, 50), "jay": (31, 9), "magpie": (80, 10)}
    classes = [
        {"name": name, "train": train, "validation": 0, "test": test}
        for name, (train, test) in counts.items()
    ]
    assert hint_lines({"classes": classes}) == [
        "fewer than 10 test images, so their recall is hardly known: jay 9",
        "unequal classes: crow has 550 images, jay 40",
    ]
