"""Which paths a pattern such as photos/**/*.png names.

Python's own glob lists a whole folder before it gives one name, and its `**` follows symlinked folders round
and round; here memory is constant and `**` never leaves the tree.
"""
# Paths are strings, as in `files`.
# ruff: noqa: PTH112, PTH118

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase

from producer.sources.files import entries
from producer.sources.image import is_hidden


def is_pattern(text: str) -> bool:
    """Whether a name holds a wildcard."""
    return any(character in text for character in "*?[")


def matches(pattern: str) -> Iterator[str]:
    """Every path that a pattern names, each folder's in the order of their names (in windows, see `entries`).

    `*` `?` `[...]` are those of the shell and pass over hidden names. `**` stands for any folders, or none; a
    pattern that has it names files only, as every file of a folder that it matches is matched itself.
    """
    parts = [part for part in pattern.split("/") if part]
    for path in _below("/" if pattern.startswith("/") else "", parts):
        is_folder = os.path.isdir(path)
        if (not is_folder) if "**" in parts else (is_folder or not pattern.endswith("/")):
            yield path


def _below(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """What the parts of a pattern match in a folder."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below in _folders(folder):
            yield from _below(below, rest or ["*"])
    elif not is_pattern(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _below(path, rest)
        elif os.path.lexists(path):
            yield path
    else:
        with suppress(OSError):  # no folder, or one that cannot be listed: nothing in it matches
            for entry in entries(folder):
                if fnmatchcase(entry.name, part) and (part.startswith(".") or not is_hidden(entry.name)):
                    path = os.path.join(folder, entry.name)
                    if rest:
                        yield from _below(path, rest)
                    else:
                        yield path


def _folders(folder: str) -> Iterator[str]:
    """A folder and all that are below it, hidden and symlinked ones excepted."""
    yield folder
    levels = [(folder, entries(folder))]
    while levels:
        above, listing = levels[-1]
        entry = None
        with suppress(OSError):
            entry = next(listing, None)
        if entry is None:
            levels.pop()
        elif entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            path = os.path.join(above, entry.name)
            yield path
            levels.append((path, entries(path)))
