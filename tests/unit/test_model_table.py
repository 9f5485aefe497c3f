"""The list of models, in terminals of several widths."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobs.model import MNIST_INPUT, InputSpec, Model
from labelmill.commands.models.table import classes_words, model_table

WHEN = datetime(2026, 11, 24, 15, 20, 51, tzinfo=UTC)


def model(number: int, classes: tuple[str, ...], spec: InputSpec = MNIST_INPUT, **others) -> Model:
    values = {"architecture": "custom", "accuracy": None, "metrics": {}, "aliases": ()} | others
    return Model(
        f"{number:016}", sha256="", size_bytes=1, classes=classes, input_spec=spec, created_at=WHEN, **values
    )


DIGITS = model(1, tuple("0123456789"), architecture="mlp", accuracy=0.9752, aliases=("champion",))
BIRDS = model(2, ("crow", "magpie", "jay"), InputSpec(32, 24, "RGB"), metrics={"file": "birds.keras"})
ODD = model(3, tuple(f"class {n}" for n in range(1000)), metrics={"file": "of a very long name\x1b[1A.keras"})


def test_models_are_told_apart_by_what_they_take_and_answer():
    head, digits, birds = model_table([DIGITS, BIRDS], 160)
    assert head.split() == ["model", "aliases", "kind", "accuracy", "input", "file", "classes", "created"]
    assert digits.split()[:6] == [DIGITS.id, "champion", "mlp", "0.9752", "28x28", "grey"]
    assert "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 " in digits
    assert birds.split()[1:7] == ["-", "custom", "-", "32x24", "RGB", "birds.keras"]
    assert "3: crow, magpie, jay " in birds
    assert birds.endswith("2026-11-24 15:20:51+00:00")


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
def test_no_line_is_wider_than_the_terminal_and_columns_stand_under_each_other(width):
    lines = model_table([DIGITS, BIRDS, ODD], width)
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    if width >= 80:
        assert lines[2][lines[0].index("file") :].startswith("birds")
        assert lines[2][lines[0].index("classes") :].startswith("3: crow, ")
        assert lines[3][lines[0].index("classes") :].startswith("1000")
    assert ("created" in lines[0]) == (width > 124)


def test_without_a_model_there_is_a_head():
    assert len(model_table([], 80)) == 1


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (20, "3: crow, magpie, jay"),
        (19, "3: crow, ..."),
        (12, "3: crow, ..."),
        (11, "3"),
    ],
)
def test_as_many_classes_are_named_as_fit(width, expected):
    assert classes_words(("crow", "magpie", "jay"), width) == expected
