"""The options that name a model's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import UserError
from jobs.models.class_names import read_class_names

ClassesOption = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="The names of its classes, in the order of its output.")
]
ClassesFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A text file of these names, one per line.")
]


def class_names_given(classes: str | None, file: Path | None) -> list[str] | None:
    """Return the class names from --classes or --classes-file; None if neither is given. Raises UserError."""
    if classes is not None and file is not None:
        raise UserError("Give --classes or --classes-file, not both.")
    if file is not None:
        return list(read_class_names(file))
    return None if classes is None else [name.strip() for name in classes.split(",")]
