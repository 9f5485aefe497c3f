"""Which paths a pattern such as photos/**/*.png names.

Python's own glob lists a whole folder before it gives one name, and its `**` follows symlinked folders round
and round; here memory is constant, and nothing leaves the folder that a pattern begins with.
"""
# Paths are strings, as in `files`.
# ruff: noqa: PTH112, PTH114, PTH118

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import NamedTuple

from producer.sources.files import entries, is_below
from producer.sources.image import is_hidden


class Match(NamedTuple):
    """A path that a pattern names."""

    path: str
    #: Where it is a symlink to a file: the path it leads to, without symlinks. Else None.
    resolved: str | None = None
    #: Whether it is a symlink that leads out of the pattern's folder.
    leaves: bool = False


def is_pattern(text: str) -> bool:
    """Whether a name holds a wildcard."""
    return any(character in text for character in "*?[")


def folder_of(pattern: str) -> str:
    """The folder that a pattern begins with, up to the first part with a wildcard; empty for the current one.
    It may be reached through symlinks: a person named it.
    """
    folder, _ = _split(pattern)
    return folder


def matches(pattern: str) -> Iterator[Match]:
    """Every path that a pattern names, each folder's in the order of their names (in windows, see `entries`).

    `*` `?` `[...]` are those of the shell and pass over hidden names. `**` stands for any folders, or none; a
    pattern that has it names files only, as every file of a folder that it matches is matched itself.

    Symlinks rule as in a folder that is named: those to folders are not followed, and those that lead out of
    the pattern's folder are matched as what must not be read.
    """
    folder, parts = _split(pattern)
    root = os.path.realpath(folder)
    for path in _below(folder, parts, root):
        is_folder = os.path.isdir(path)
        if os.path.islink(path):
            resolved = os.path.realpath(path)
            if not is_below(resolved, root):
                if is_folder or not pattern.endswith("/"):
                    yield Match(path, leaves=True)
            elif not is_folder and not pattern.endswith("/"):
                yield Match(path, resolved)
        elif (not is_folder) if "**" in parts else (is_folder or not pattern.endswith("/")):
            yield Match(path)


def _split(pattern: str) -> tuple[str, list[str]]:
    """The folder before the first part with a wildcard, and the parts from there on."""
    parts = [part for part in pattern.split("/") if part]
    first = next(place for place, part in enumerate(parts) if is_pattern(part))
    return ("/" if pattern.startswith("/") else "") + "/".join(parts[:first]), parts[first:]


def _below(folder: str, parts: Sequence[str], root: str) -> Iterator[str]:
    """What the parts of a pattern match in a folder. Where they would go on through a symlink that leads out
    of the root, the symlink itself; nobody looks at what is behind it.
    """
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below in _folders(folder):
            yield from _below(below, rest or ["*"], root)
    elif not is_pattern(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _into(path, rest, root)
        elif os.path.lexists(path):
            yield path
    else:
        with suppress(OSError):  # no folder, or one that cannot be listed: nothing in it matches
            for entry in entries(folder):
                if fnmatchcase(entry.name, part) and (part.startswith(".") or not is_hidden(entry.name)):
                    path = os.path.join(folder, entry.name)
                    if rest:
                        yield from _into(path, rest, root)
                    else:
                        yield path


def _into(path: str, rest: Sequence[str], root: str) -> Iterator[str]:
    if not os.path.islink(path):
        yield from _below(path, rest, root)
    elif os.path.isdir(path) and not is_below(os.path.realpath(path), root):
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
