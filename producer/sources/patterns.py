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
    """Every path that a pattern names, once, each folder's in the order of their names (in windows, see
    `entries`).

    `*` `?` `[...]` are those of the shell and pass over hidden names. `**` stands for any folders, or none; a
    pattern that has it names files only, as every file of a folder that it matches is matched itself.

    Symlinks rule as in a folder that is named: those to folders are not followed, and those that lead out of
    the pattern's folder are matched as what must not be read.
    """
    folder, parts = _split(pattern)
    root = os.path.realpath(folder)
    # Links out to folders. They alone come several times: each part that leads to one ends there.
    given: set[str] = set()
    for path in _below(folder, parts, root):
        is_folder = os.path.isdir(path)
        if os.path.islink(path):
            resolved = os.path.realpath(path)
            if not is_below(resolved, root):
                if is_folder and "**" in parts:
                    if path in given:
                        continue
                    given.add(path)
                if is_folder or not pattern.endswith("/"):
                    yield Match(path, leaves=True)
            elif not is_folder and not pattern.endswith("/"):
                yield Match(path, resolved)
        elif (not is_folder) if "**" in parts else (is_folder or not pattern.endswith("/")):
            yield Match(path)


def _split(pattern: str) -> tuple[str, list[str]]:
    """The folder before the first part with a wildcard, and the parts from there on. Several `**` in a row
    mean what one does, and are one.
    """
    parts: list[str] = []
    for part in pattern.split("/"):
        if part and (part, parts[-1:]) != ("**", ["**"]):
            parts.append(part)
    first = next(place for place, part in enumerate(parts) if is_pattern(part))
    return ("/" if pattern.startswith("/") else "") + "/".join(parts[:first]), parts[first:]


def _below(folder: str, parts: Sequence[str], root: str) -> Iterator[str]:
    """What the parts of a pattern match in a folder. Where they would go on through a symlink that leads out
    of the root, the symlink itself; nobody looks at what is behind it.
    """
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _at_any_depth(folder, rest or ["*"], root)
    elif not is_pattern(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _into(path, rest, root)
        elif os.path.lexists(path):
            yield path
    else:
        with suppress(OSError):  # no folder, or one that cannot be listed: nothing in it matches
            for entry in entries(folder):
                if _fits(entry.name, part):
                    path = os.path.join(folder, entry.name)
                    if rest:
                        yield from _into(path, rest, root)
                    else:
                        yield path


def _at_any_depth(folder: str, parts: Sequence[str], root: str) -> Iterator[str]:
    """What the parts match in a folder and in all that are below it: each path once, but for links out."""
    again = parts.index("**") if "**" in parts else len(parts)
    fixed, further = parts[:again], parts[again:]
    for start in _folders(folder):
        for path in _below(start, fixed, root):
            if not further:
                yield path
            elif not _came_before(start, path, folder, fixed) or os.path.islink(path):
                yield from _into(path, further, root)


def _came_before(start: str, path: str, folder: str, fixed: Sequence[str]) -> bool:
    """Whether what is in this folder was given already, where another `**` follows on the fixed parts: they
    matched a folder above it when the first one stood for fewer folders, and the second led from there to
    here. So it is in **/b/** with b/c/b, from the folder b/c on.
    """
    names = _names(path, folder)
    return any(all(map(_fits, names[fewer:], fixed)) for fewer in range(len(_names(start, folder))))


def _names(path: str, folder: str) -> list[str]:
    """The parts of a path below a folder."""
    return [name for name in path[len(folder) :].split("/") if name]


def _fits(name: str, part: str) -> bool:
    if not is_pattern(part):
        return name == part
    return fnmatchcase(name, part) and (part.startswith(".") or not is_hidden(name))


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
