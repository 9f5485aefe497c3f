"""The list of models for people: what tells one from another, as wide as the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from jobs.model import InputSpec, Model
from labelmill.console import time_words
from producer.export import printable

_GAP: Final = "  "

#: What is left for file and classes together: at least so much; and where it is less than that with the time,
#: the time has to go.
_LEAST: Final = 22
_ENOUGH: Final = 40

#: The time with the gap before it.
_TIME: Final = 27

#: So much of a file's name is cut off before a class is not named: `10: 0, 1, ...`.
_FIRST_CLASSES: Final = 12

_HEAD: Final = ("model", "aliases", "kind", "accuracy", "input")


def model_table(models: Sequence[Model], width: int) -> list[str]:
    """A line for each, beneath a line that says what is in it; none is wider than so many characters."""
    rows = [_HEAD, *map(_cells, models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    taken = sum(each + len(_GAP) for each in widths)
    with_time = width - taken - _TIME >= _ENOUGH
    left = max(_LEAST, width - taken - (_TIME if with_time else 0))

    most = min(left // 2, left - len(_GAP) - _FIRST_CLASSES)
    files = ["file", *(_shortened(_file(model), most) for model in models)]
    file_width = max(map(len, files))
    room = left - file_width - len(_GAP)
    classes = ["classes", *(classes_words(model.classes, room) for model in models)]
    class_width = max(map(len, classes))
    created = ["created", *(time_words(model.created_at) for model in models)]
    lines = []
    for cells, file, names, moment in zip(rows, files, classes, created, strict=True):
        told = [cell.ljust(each) for cell, each in zip(cells, widths, strict=True)]
        told += [file.ljust(file_width), names.ljust(class_width), moment if with_time else ""]
        lines.append(_GAP.join(told)[:width].rstrip())
    return lines


def classes_words(classes: Sequence[str], width: int) -> str:
    """How many there are, and the first of them, as many as fit: `3: crow, ...`."""
    count = f"{len(classes)}"
    names = [printable(name) for name in classes]
    if len(whole := f"{count}: {', '.join(names)}") <= width:
        return whole
    # Each with the comma that follows it; dots come in the place of the rest.
    ends = accumulate((len(name) + 2 for name in names), initial=len(count) + 2)
    fit = sum(end + len("...") <= width for end in ends) - 1
    return f"{count}: {', '.join([*names[:fit], '...'])}" if fit > 0 else count


def input_words(spec: InputSpec) -> str:
    """What pictures a model takes, in short: `28x28 grey`."""
    return f"{spec.width}x{spec.height} {'grey' if spec.mode == 'L' else 'RGB'}"


def _cells(model: Model) -> tuple[str, ...]:
    accuracy = f"{model.accuracy:.4f}" if model.accuracy is not None else "-"
    return (
        model.id,
        ", ".join(model.aliases) or "-",
        printable(model.architecture),
        accuracy,
        input_words(model.input_spec),
    )


def _file(model: Model) -> str:
    name: Any = model.metrics.get("file")  # of one that was registered
    return printable(name) if isinstance(name, str) else "-"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
