"""Images that lie on disk: single files, and folders with all that is below them.

Nothing is followed out of a named folder, and nothing is opened that could block.
"""
# Paths are strings and descriptors are bare here: pathlib and file objects cost more than the reading itself.
# ruff: noqa: PTH110, PTH112, PTH113, PTH118

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from typing import Final

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.reading import OPEN, read_regular, why
from jobs.text import storable
from producer.sources.image import Reading, SourceImage, failed, is_hidden, is_image_name

#: How many entries of one folder are held and sorted at a time: some 10 MB, however many files there are.
WINDOW = 65_536

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


def read_folder(path: str, reading: Reading, root: str | None = None) -> Iterator[SourceImage]:
    """Every image below a folder, depth first, each folder's entries in the order of their names.

    Entries are sorted in windows of WINDOW, as the system lists them: memory stays the same for millions of
    files in one folder, and the same folder gives the same order. Hidden entries are passed over in silence,
    files with no image's extension are counted in `reading.skipped`. Symlinks to files within the folder are
    read, symlinks to folders are not followed; what leads out of it or is no regular file is an error. With
    `root`, out of that folder above it.
    """
    root = os.path.realpath(path if root is None else root)
    name = shown(path)
    prefix = "" if name == "." else name.rstrip("/") + "/"
    cut = len(os.path.join(path, ""))
    # A stack and not recursion: a tree may be deeper than Python's.
    levels = [(path, entries(path))]
    while levels:
        folder, listing = levels[-1]
        try:
            for entry in listing:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    levels.append((entry.path, entries(entry.path)))
                    break
                image = _entry(entry, prefix + storable(entry.path[cut:]), root, reading)
                if image is not None:
                    yield image
            else:
                levels.pop()
        except OSError as error:
            levels.pop()
            yield failed(shown(folder), ErrorCode.SOURCE_MISSING, why(error))


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """A folder's entries, sorted by name in windows of WINDOW. Raises OSError when it cannot be listed."""
    with os.scandir(folder or ".") as listing:
        while window := sorted(islice(listing, WINDOW), key=_by_name):
            yield from window


def _entry(entry: os.DirEntry[str], name: str, root: str, reading: Reading) -> SourceImage | None:
    """The image of one entry that is no folder; None where it is passed over."""
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
        regular = entry.is_file(follow_symlinks=False) or not os.path.lexists(path)
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
    except ImageError as error:
        return SourceImage(name, None, error)
    except OSError as error:
        return failed(name, ErrorCode.SOURCE_MISSING, why(error))
    return SourceImage(name, data, None, path)
