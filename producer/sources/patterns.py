"""Which paths a pattern such as photos/**/*.png names.

Python's own glob lists a whole folder before it gives one name, and its `**` follows symlinked folders round
and round; here memory is constant, and nothing leaves the folder that a pattern begins with.
"""
# Paths are strings, as in `files`.
# ruff: noqa: PTH112, PTH114, PTH118

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from jobs.reading import why
from producer.sources.files import entries, is_below
from producer.sources.image import is_hidden

#: What a folder's listing raises where there is no such folder: nothing in it matches.
_NO_FOLDER: Final = (FileNotFoundError, NotADirectoryError)


class Match(NamedTuple):
    """A path that a pattern names."""

    path: str
    #: Where it is a symlink to a file: the path it leads to, without symlinks. Else None.
    resolved: str | None = None
    #: Whether it is a symlink that leads out of the pattern's folder.
    leaves: bool = False
    #: Why nobody can tell what matches in it, or whether it is there: it may not be entered. Else None.
    trouble: str | None = None


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
    the pattern's folder are matched as what must not be read. A folder that may not be listed is matched as
    what is in trouble, whatever the pattern says of it: nobody knows what is missing.
    """
    folder, parts = _split(pattern)
    root = os.path.realpath(folder)
    # Links out to folders, and folders in trouble. They alone come several times: each part that leads to one
    # ends there.
    given: set[str] = set()
    for path in _below(folder, parts, root):
        match = path if isinstance(path, Match) else _match(path, parts, root, slash=pattern.endswith("/"))
        if match is None:
            continue
        if match.trouble is not None or (match.leaves and os.path.isdir(match.path)):
            if match.path in given:
                continue
            given.add(match.path)
        yield match


def _match(path: str, parts: Sequence[str], root: str, *, slash: bool) -> Match | None:
    """The match that a path is, if it is one of the kind that the pattern asks for. `slash`: at its end."""
    is_folder = os.path.isdir(path)
    if os.path.islink(path):
        resolved = os.path.realpath(path)
        if not is_below(resolved, root):
            return Match(path, leaves=True) if is_folder or not slash else None
        return None if is_folder or slash else Match(path, resolved)
    wanted = not is_folder if "**" in parts else is_folder or not slash
    return Match(path) if wanted else None


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


def _below(folder: str, parts: Sequence[str], root: str) -> Iterator[str | Match]:
    """What the parts of a pattern match in a folder. Where they would go on through a symlink that leads out
    of the root, the symlink itself; nobody looks at what is behind it. A Match is a folder in trouble.
    """
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _at_any_depth(folder, rest or ["*"], root)
    elif not is_pattern(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _into(path, rest, root)
        else:
            try:
                os.lstat(path)
            except _NO_FOLDER:
                return
            except OSError as error:
                yield Match(path, trouble=why(error))
                return
            yield path
    else:
        listing = entries(folder)
        while not isinstance(entry := _next(listing, folder), Match | None):
            if _fits(entry.name, part):
                path = os.path.join(folder, entry.name)
                if rest:
                    yield from _into(path, rest, root)
                else:
                    yield path
        if entry is not None:
            yield entry


def _next(listing: Iterator[os.DirEntry[str]], folder: str) -> os.DirEntry[str] | Match | None:
    """The next entry of a folder; None where there are no more or there is no folder; a Match where it cannot
    be listed.
    """
    try:
        return next(listing, None)
    except _NO_FOLDER:
        return None
    except OSError as error:
        return Match(folder, trouble=why(error))


def _at_any_depth(folder: str, parts: Sequence[str], root: str) -> Iterator[str | Match]:
    """What the parts match in a folder and in all that are below it: each path once, but for links out."""
    again = parts.index("**") if "**" in parts else len(parts)
    fixed, further = parts[:again], parts[again:]
    for start in _folders(folder):
        if isinstance(start, Match):
            yield start
            continue
        for path in _below(start, fixed, root):
            if not further or isinstance(path, Match):
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


def _into(path: str, rest: Sequence[str], root: str) -> Iterator[str | Match]:
    if not os.path.islink(path):
        yield from _below(path, rest, root)
    elif os.path.isdir(path) and not is_below(os.path.realpath(path), root):
        yield path


def _folders(folder: str) -> Iterator[str | Match]:
    """A folder and all that are below it, hidden and symlinked ones excepted; as a Match one that cannot be
    listed, after its path.
    """
    yield folder
    levels = [(folder, entries(folder))]
    while levels:
        above, listing = levels[-1]
        entry = _next(listing, above)
        if entry is None or isinstance(entry, Match):
            levels.pop()
            if entry is not None:
                yield entry
        elif entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            path = os.path.join(above, entry.name)
            yield path
            levels.append((path, entries(path)))
