"""The list of models fits into terminals of several widths."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from jobs.model import MNIST_INPUT, InputSpec, Model
from labelmill.commands.models.listing import COLUMNS
from labelmill.tables import table_lines

WHEN = datetime(2026, 11, 24, 15, 20, 51, tzinfo=UTC)


def model(number: int, classes: tuple[str, ...], spec: InputSpec = MNIST_INPUT, **others) -> Model:
    values = {"architecture": "custom", "accuracy": None, "metrics": {}, "aliases": ()} | others
    return Model(
        f"{number:016}", sha256="", size_bytes=1, classes=classes, input_spec=spec, created_at=WHEN, **values
    )


DIGITS = model(1, tuple("0123456789"), architecture="mlp", accuracy=0.9752, aliases=("champion",))
BIRDS = model(2, ("crow", "magpie", "jay"), InputSpec(32, 24, "RGB"), metrics={"file": "birds.keras"})
ODD = model(3, tuple(f"class {n}" for n in range(1000)), metrics={"file": "of a very long name\x1b[1A.keras"})


def model_table(models: list[Model], width: int) -> list[str]:
    return table_lines(COLUMNS, models, width)


def test_models_are_told_apart_by_what_they_take_and_answer():
    head, digits, birds = model_table([DIGITS, BIRDS], 160)
    assert head.split() == [
        "model",
        "aliases",
        "kind",
        "accuracy",
        "input",
        "file",
        "classes",
        "created",
        "(UTC)",
    ]
    assert digits.split()[:6] == [DIGITS.id, "champion", "mlp", "0.9752", "28x28", "grey"]
    assert "10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 " in digits
    assert birds.split()[1:7] == ["-", "custom", "-", "32x24", "RGB", "birds.keras"]
    assert "3: crow, magpie, jay " in birds
    assert birds.endswith("2026-11-24 15:20")


@pytest.mark.parametrize("width", [40, 80, 100, 120, 160])
def test_no_line_is_wider_than_the_terminal_and_columns_stand_under_each_other(width):
    lines = model_table([DIGITS, BIRDS, ODD], width)
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    if width >= 80:
        assert lines[2][lines[0].index("file") :].startswith("birds")
        assert lines[2][lines[0].index("classes") :].startswith("3: crow, ")
        assert lines[3][lines[0].index("classes") :].startswith("1000")
    assert ("created" in lines[0]) == (width >= 100)


def test_without_a_model_there_is_a_head():
    assert len(model_table([], 80)) == 1
