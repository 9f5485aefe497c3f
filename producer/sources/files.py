"""Images that lie on disk: single files, and folders with all that is below them.

Nothing is followed out of a named folder, and nothing is opened that could block.
"""
# Paths are strings and descriptors are bare here: pathlib and file objects cost more than the reading itself.
# ruff: noqa: PTH110, PTH112, PTH113, PTH118

from __future__ import annotations

import os
from bisect import bisect
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.reading import OPEN, read_files, read_regular, why
from jobs.text import all_storable, storable
from producer.sources.image import (
    USUAL_ENDINGS,
    Reading,
    SourceImage,
    SourceImages,
    failed,
    is_hidden,
    is_image_name,
    is_short,
)

#: How many entries of one folder are held and sorted at a time: some 10 MB, however many files there are.
WINDOW = 65_536

#: So many files of a folder are read and handed on together, or fewer, where they are larger, which have so
#: many bytes together.
_MANY: Final = 256
_MANY_BYTES: Final = 1024 * 1024

_LEAVES: Final = "a symlink that leaves its folder"

_by_name = attrgetter("name")


def shown(path: str) -> str:
    """What a path is called in the results: as it was given, without detours such as `./`."""
    return storable(os.path.normpath(path))


def head(path: str, size: int) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        descriptor = os.open(path, OPEN)
    except OSError:
        return b""
    try:
        return os.read(descriptor, size)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def no_access(path: str, error: OSError) -> SourceError:
    """What is said of a file that the system does not let us read, whatever is in it."""
    if isinstance(error, PermissionError):
        advice = "check its permissions"
    else:
        advice = "check that it is there, and the disk that it is on"
    return SourceError(f"{shown(path)} cannot be read ({why(error)}): {advice}")


def read_file(path: str, reading: Reading) -> Iterator[SourceImage]:
    """A file that was named itself: taken whatever it is called, through a symlink too."""
    yield _load(path, shown(path), reading.max_bytes)


def read_special(path: str, reading: Reading) -> Iterator[SourceImage]:  # noqa: ARG001 - a reader's signature
    """A FIFO, device or socket that was named itself: never opened."""
    yield failed(shown(path), ErrorCode.SOURCE_FORBIDDEN, "not a regular file")


def read_link(path: str, resolved: str, reading: Reading) -> Iterator[SourceImage]:
    """What a symlink was resolved to, called by the symlink's name; nothing more is followed: it may change
    in between.
    """
    yield _load(resolved, shown(path), reading.max_bytes, follow=False)


def leaving(path: str) -> SourceImage:
    """What is said of a symlink that leads out of the folder it was found in."""
    return failed(shown(path), ErrorCode.SOURCE_FORBIDDEN, _LEAVES)


def is_below(resolved: str, root: str) -> bool:
    """Whether a path is in a folder, or is the folder; both without symlinks."""
    return resolved == root or resolved.startswith(os.path.join(root, ""))


def read_folder(path: str, reading: Reading, root: str | None = None) -> Iterator[SourceImage | SourceImages]:
    """Every image below a folder, depth first, each folder's entries in the order of their names.

    Entries are sorted in windows of WINDOW, as the system lists them: memory stays the same for millions of
    files in one folder, and the same folder gives the same order. Hidden entries are passed over in silence,
    files with no image's extension are counted in `reading.skipped`. Symlinks to files within the folder are
    read, symlinks to folders are not followed; what leads out of it or is no regular file is an error. With
    `root`, out of that folder above it.
    """
    root = os.path.realpath(path if root is None else root)
    whole = shown(path)
    called = _Called("" if whole == "." else whole.rstrip("/") + "/", len(os.path.join(path, "")))
    # A stack and not recursion: a tree may be deeper than Python's.
    levels = [(path, _steps(path))]
    while levels:
        folder, steps = levels[-1]
        try:
            for step in steps:
                if isinstance(step, list):
                    yield from _read(step, called, reading.max_bytes)
                elif is_hidden(step.name):
                    continue
                elif step.is_dir(follow_symlinks=False):
                    levels.append((step.path, _steps(step.path)))
                    break
                elif step.is_file(follow_symlinks=False):
                    reading.skipped += 1
                elif (other := _special(step, called(step.path), root, reading)) is not None:
                    yield other
            else:
                levels.pop()
        except OSError as error:
            levels.pop()
            yield failed(shown(folder), ErrorCode.SOURCE_MISSING, why(error))


def _steps(folder: str) -> Iterator[list[str] | os.DirEntry[str]]:
    """A folder's entries, each window sorted by name: the paths of its images, as many as follow one another,
    and each other entry by itself. Raises OSError when it cannot be listed.
    """
    for window in _windows(folder):
        # In one go: while files are read, each entry would have to come from far away in memory, and its name
        # too; that takes as long as a tenth of the reading.
        names, others = [], []
        for entry in window:
            if _is_image(entry):
                names.append(entry.name)
            else:
                others.append(entry)
        names.sort()
        others.sort(key=_by_name)
        above = os.path.join(folder, "")
        paths = [above + name for name in names]  # anew, one beside the other
        start = 0
        for other in others:
            end = bisect(names, other.name)
            if start < end:
                yield paths[start:end]
            yield other
            start = end
        if start < len(paths):
            yield paths[start:]


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file to be read. Also where that cannot be told: to open it will tell what is wrong."""
    name = entry.name
    if not (name[-4:] in USUAL_ENDINGS and name[0] != ".") and (is_hidden(name) or not is_image_name(name)):
        return False
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return True


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """A folder's entries, sorted by name in windows of WINDOW. Raises OSError when it cannot be listed."""
    for window in _windows(folder):
        yield from sorted(window, key=_by_name)


def _windows(folder: str) -> Iterator[list[os.DirEntry[str]]]:
    """A folder's entries as the system lists them, WINDOW at a time. Raises OSError when it cannot."""
    with os.scandir(folder or ".") as listing:
        while window := list(islice(listing, WINDOW)):
            yield window


class _Called(NamedTuple):
    """What the files below a named folder are called in the results."""

    prefix: str  # the folder, as it was named
    cut: int  # of a path, in characters: the part that stands for the folder

    def __call__(self, path: str) -> str:
        return self.prefix + storable(path[self.cut :])

    def all(self, paths: list[str]) -> list[str]:
        """The same of many."""
        prefix, cut = self
        return all_storable([prefix + path[cut:] for path in paths])


def _read(paths: list[str], called: _Called, max_bytes: int) -> Iterator[SourceImage | SourceImages]:
    """Files of a folder, in order: those together that can be read, and why the others cannot."""
    start = 0
    while many := paths[start : start + _MANY]:
        contents, error = read_files(many, max_bytes=max_bytes, follow=False, enough=_MANY_BYTES)
        number = len(contents)
        if contents:
            read = many[:number]
            found = SourceImages(called.all(read), contents, read)
            if is_short(max(found.names, key=len)):
                yield found
            else:
                yield from found.one_by_one()
        if error is not None:
            yield _unread(called(many[number]), error)
            number += 1
        start += number


def _special(entry: os.DirEntry[str], name: str, root: str, reading: Reading) -> SourceImage | None:
    """What is said of an entry that is neither a file nor a folder; None where it is passed over."""
    path = entry.path
    if entry.is_symlink():
        # Read what it was resolved to, without following anything more: it may change in between.
        path = os.path.realpath(path)
        if not is_below(path, root):
            return failed(name, ErrorCode.SOURCE_FORBIDDEN, _LEAVES)
        if os.path.isdir(path):
            return None
        regular = not os.path.exists(path) or os.path.isfile(path)
    else:
        regular = not os.path.lexists(path)
    if not regular:
        return failed(name, ErrorCode.SOURCE_FORBIDDEN, "not a regular file")
    if not is_image_name(entry.name):
        reading.skipped += 1
        return None
    return _load(path, name, reading.max_bytes, follow=False)


def _load(path: str, name: str, max_bytes: int, *, follow: bool = True) -> SourceImage:
    """Read one file, or say why not."""
    try:
        data = read_regular(path, max_bytes=max_bytes, follow=follow)
    except (ImageError, OSError) as error:
        return _unread(name, error)
    return SourceImage(name, data, None, path)


def _unread(name: str, error: ImageError | OSError) -> SourceImage:
    """What is said of a file that could not be read."""
    if isinstance(error, ImageError):
        return SourceImage(name, None, error)
    return failed(name, ErrorCode.SOURCE_MISSING, why(error))
