"""Read images from disk: single files, and folders with everything below them.

No symlink is followed out of a named folder, and nothing is opened that could block.
"""
# Paths are strings and descriptors are numbers: pathlib and file objects cost more than the reading itself.
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

#: Entries of one folder that are held and sorted at a time: about 10 MB, however many files there are.
WINDOW = 65_536

#: Files of a folder are read and yielded in groups. A group ends at this many files or bytes.
_GROUP_FILES: Final = 256
_GROUP_BYTES: Final = 1024 * 1024

_LEAVES: Final = "a symlink that leaves its folder"

_by_name = attrgetter("name")


def shown(path: str) -> str:
    """Return a path's name in the results: normalised, but not made absolute."""
    return storable(os.path.normpath(path))


def head(path: str, size: int) -> bytes:
    """Return the first `size` bytes of a file, or b"" if it cannot be read."""
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


def access_error(path: str, error: OSError, what: str = "read") -> SourceError:
    """Return the SourceError for a file that cannot be read, or a folder that cannot be `listed`."""
    if isinstance(error, PermissionError):
        advice = "check its permissions"
    else:
        advice = "check that it is there, and the disk that it is on"
    return SourceError(f"{shown(path)} cannot be {what} ({why(error)}): {advice}")


def read_file(path: str, reading: Reading) -> Iterator[SourceImage]:
    """Yield a file that the user named, whatever its extension, following symlinks."""
    yield _load(path, shown(path), reading.max_bytes)


def read_special(path: str, reading: Reading) -> Iterator[SourceImage]:  # noqa: ARG001 - a reader's signature
    """Yield the error of a named FIFO, device or socket, without opening it."""
    yield failed(shown(path), ErrorCode.SOURCE_FORBIDDEN, "not a regular file")


def read_link(path: str, resolved: str, reading: Reading) -> Iterator[SourceImage]:
    """Yield the file that a symlink was resolved to, under the symlink's name.

    No further symlink is followed, because the file may have been replaced by one.
    """
    yield _load(resolved, shown(path), reading.max_bytes, follow=False)


def leaving_symlink(path: str) -> SourceImage:
    """Return the error for a symlink that leads out of its folder."""
    return failed(shown(path), ErrorCode.SOURCE_FORBIDDEN, _LEAVES)


def is_below(resolved: str, root: str) -> bool:
    """Return whether a path is in a folder, or is the folder. Both must be free of symlinks."""
    return resolved == root or resolved.startswith(os.path.join(root, ""))


def read_folder(path: str, reading: Reading, root: str | None = None) -> Iterator[SourceImage | SourceImages]:
    """Yield every image below a folder, depth first, in the order of the names.

    Entries are sorted in windows of WINDOW, as the system lists them: memory is constant even for millions of
    files in one folder, and the same folder gives the same order. Hidden entries are skipped silently, files
    with another extension than an image's are counted in `reading.skipped`. Symlinks to files within the
    folder are read, symlinks to folders are not followed. A symlink that leads out of the folder, or out of
    `root` above it, is an error, and so is anything that is not a regular file.
    """
    root = os.path.realpath(path if root is None else root)
    whole = shown(path)
    result_names = _ResultNames("" if whole == "." else whole.rstrip("/") + "/", len(os.path.join(path, "")))
    # A stack instead of recursion: a tree may be deeper than Python's stack.
    levels = [(path, _entry_groups(path))]
    while levels:
        folder, items = levels[-1]
        try:
            for item in items:
                if isinstance(item, list):
                    yield from _read(item, result_names, reading.max_bytes)
                elif is_hidden(item.name):
                    continue
                elif item.is_dir(follow_symlinks=False):
                    levels.append((item.path, _entry_groups(item.path)))
                    break
                elif item.is_file(follow_symlinks=False):
                    reading.skipped += 1
                elif (other := _read_other_entry(item, result_names(item.path), root, reading)) is not None:
                    yield other
            else:
                levels.pop()
        except OSError as error:
            levels.pop()
            yield failed(shown(folder), ErrorCode.SOURCE_MISSING, why(error))


def _entry_groups(folder: str) -> Iterator[list[str] | os.DirEntry[str]]:
    """Yield a folder's entries, each window sorted by name.

    Consecutive images are one list of paths; any other entry is yielded by itself. Raises OSError if the
    folder cannot be listed.
    """
    for window in _windows(folder):
        # Examine all entries before files are read, while they are in the processor's cache: afterwards it
        # would take a tenth of the time that the reading takes.
        names, others = [], []
        for entry in window:
            if _is_image(entry):
                names.append(entry.name)
            else:
                others.append(entry)
        names.sort()
        others.sort(key=_by_name)
        above = os.path.join(folder, "")
        paths = [above + name for name in names]
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
    """Return whether an entry is an image to read. If its type is unknown, opening it shows the error."""
    name = entry.name
    if not (name[-4:] in USUAL_ENDINGS and name[0] != ".") and (is_hidden(name) or not is_image_name(name)):
        return False
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return True


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield a folder's entries, sorted by name in windows. Raises OSError if it cannot be listed."""
    for window in _windows(folder):
        yield from sorted(window, key=_by_name)


def _windows(folder: str) -> Iterator[list[os.DirEntry[str]]]:
    """Yield a folder's entries as the system lists them, WINDOW at a time. Raises OSError if it fails."""
    with os.scandir(folder or ".") as listing:
        while window := list(islice(listing, WINDOW)):
            yield window


class _ResultNames(NamedTuple):
    """Converts the paths of files below a named folder to their names in the results."""

    prefix: str  # the folder, as it was named
    cut: int  # number of characters of a path that are the folder

    def __call__(self, path: str) -> str:
        return self.prefix + storable(path[self.cut :])

    def all(self, paths: list[str]) -> list[str]:
        """Return the names of many paths."""
        prefix, cut = self
        return all_storable([prefix + path[cut:] for path in paths])


def _read(
    paths: list[str], result_names: _ResultNames, max_bytes: int
) -> Iterator[SourceImage | SourceImages]:
    """Yield files of a folder, in order: readable ones together, and the errors of the others."""
    start = 0
    while many := paths[start : start + _GROUP_FILES]:
        contents, error = read_files(many, max_bytes=max_bytes, follow=False, enough=_GROUP_BYTES)
        number = len(contents)
        if contents:
            read = many[:number]
            found = SourceImages(result_names.all(read), contents, read)
            if is_short(max(found.names, key=len)):
                yield found
            else:
                yield from found.one_by_one()
        if error is not None:
            yield _read_error(result_names(many[number]), error)
            number += 1
        start += number


def _read_other_entry(entry: os.DirEntry[str], name: str, root: str, reading: Reading) -> SourceImage | None:
    """Return the image or error of an entry that is neither file nor folder, or None if it is skipped."""
    path = entry.path
    if entry.is_symlink():
        # No further symlink is followed below, because the file may be replaced by one in between.
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
    """Read one file. If that fails, return its error."""
    try:
        data = read_regular(path, max_bytes=max_bytes, follow=follow)
    except (ImageError, OSError) as error:
        return _read_error(name, error)
    return SourceImage(name, data, None, path)


def _read_error(name: str, error: ImageError | OSError) -> SourceImage:
    """Return the error of a file that could not be read."""
    if isinstance(error, ImageError):
        return SourceImage(name, None, error)
    return failed(name, ErrorCode.SOURCE_MISSING, why(error))
