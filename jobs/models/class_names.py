"""Class names: a file with one per line, and the rules for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.errors import UserError
from jobs.text import is_plain


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the class names in a file: one per line, in the order of the labels. Empty lines do not count.

    Raises UserError if the file cannot be read or the names cannot be used.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: it must list the class names, one per line")
    try:
        # -sig: Windows editors put a byte order mark before the first name.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): it must be text in UTF-8, and readable") from error
    names = tuple(line.strip() for line in lines if line.strip())
    check_class_names(names, str(path))
    return names


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raise UserError, which begins with `where`, if these cannot be the names of classes."""
    if isinstance(names, str):
        raise UserError(f"{where} is the text {names!r}: give a list of names")
    if not names:
        raise UserError(f"{where} names no class: name each output of the model, in order")
    seen = set()
    for name in names:
        if not name:
            raise UserError(f"{where} has an empty name: each class needs its own name")
        if not is_plain(name):
            raise UserError(f"{where}: the name {name!r} has a control character: remove it")
        if name in seen:
            raise UserError(f"{where} lists a class twice: {name}. Each class needs its own name")
        seen.add(name)
