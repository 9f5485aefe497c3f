"""Files of ours on a local disk: private, and there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Final

_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600

#: A file that is being written has its name with a dot before it and so much chance behind it.
_CHANCE_BYTES: Final = 4
_UNFINISHED: Final = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _CHANCE_BYTES}}}")

#: So many pieces the system takes at a time (IOV_MAX, of Linux and macOS).
_PIECES: Final = 1024

#: What a killed process left in a folder for the time being is removed so much later. Nothing of ours needs
#: such a folder for an hour.
_LEFTOVER_SECONDS: Final = 24 * 3600

#: What is taken from the permissions of all that a program of somebody else's makes for us.
PRIVATE_UMASK: Final = 0o077


def make_private_folder(path: Path) -> list[Path]:
    """Makes the folder where there is none, and those above it; every one it makes is its owner's alone.
    Gives back those that were missing, the uppermost first. Raises OSError.
    """
    # Not mkdir(parents=True): that gives its mode to the last folder only.
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    missing.reverse()
    for folder in missing:
        with contextlib.suppress(FileExistsError):  # another process was faster
            folder.mkdir(mode=_PRIVATE_FOLDER)
    return missing


def make_private_file(path: Path) -> None:
    """Makes an empty file where there is none. Raises OSError, also where what is there is no file, or not
    one that may be read and written.
    """
    # A file that is there is not even opened: closing it would take away the locks that SQLite has on it in
    # this process, and another process that is done with the database then deletes its journal under us.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _PRIVATE_FILE))
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None


@contextlib.contextmanager
def folder_for_now(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, which is made where there is none; gone afterwards. Those of this prefix that
    were left by a killed process are removed with it, a day later. Raises OSError.
    """
    make_private_folder(parent)
    oldest = time.time() - _LEFTOVER_SECONDS
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # it is another's, or another is removing it
            if left.lstat().st_mtime < oldest:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        yield Path(folder)


def append_privately(path: Path) -> FileIO:
    """Open a file to append to it, without a buffer; make it if it does not exist. Raise OSError."""
    return FileIO(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, _PRIVATE_FILE), "a")


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """Within it all that this process makes is its owner's alone, also by code that is not ours."""
    before = os.umask(PRIVATE_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def write_whole(path: Path, *pieces: bytes) -> None:
    """Writes a private file of these pieces; when this returns it survives a power cut as well as its folder
    does, until then there is none of it. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_CHANCE_BYTES)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE_FILE)
    try:
        try:
            _write(descriptor, pieces)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    # The rename itself lies in the folder.
    sync(path.parent)


def unfinished(name: str) -> str | None:
    """Of which file this is a part that `write_whole` has left when it was killed, by its name; None where it
    is none.
    """
    found = _UNFINISHED.fullmatch(name)
    return found[1] if found else None


def _write(descriptor: int, pieces: Sequence[bytes]) -> None:
    """Writes all pieces, many with each call: a file object makes two of each photograph, which take the
    system nearly twice as long. Raises OSError.
    """
    rest = [memoryview(piece) for piece in reversed(pieces) if piece]  # the next one last
    while rest:
        written = os.writev(descriptor, rest[: -_PIECES - 1 : -1])
        while written:  # which may be less than all
            piece = rest.pop()
            if written < len(piece):
                rest.append(piece[written:])
            written -= min(written, len(piece))


def sync(path: Path) -> None:
    """When this returns, what is in the file, or was made in the folder, survives a power cut. Raises
    OSError.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
