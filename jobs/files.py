"""Our own files on a local disk: private, and written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import IO, Final

_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600

#: An unfinished file has the final name with a dot before it and this much randomness after it.
_RANDOM_BYTES: Final = 4
_UNFINISHED: Final = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}")

#: How many pieces one system call takes (IOV_MAX on Linux and macOS).
_MAX_PIECES: Final = 1024

#: If the file system has no locks, a temporary folder that a killed process left is removed after this time.
#: No process of ours needs one for an hour.
_LEFTOVER_SECONDS: Final = 24 * 3600

#: The umask for files that other programs or libraries create for us.
PRIVATE_UMASK: Final = 0o077


def make_private_folder(path: Path) -> list[Path]:
    """Create the folder and its missing parents, accessible only to the owner. Raises OSError.

    Return the folders that were missing, topmost first.
    """
    # Not mkdir(parents=True), which applies the mode to the last folder only.
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    missing.reverse()
    for folder in missing:
        with contextlib.suppress(FileExistsError):  # another process was faster
            folder.mkdir(mode=_PRIVATE_FOLDER)
    return missing


def make_private_file(path: Path) -> None:
    """Create an empty file, accessible only to the owner, unless it exists.

    Raises OSError, also if the path is a folder, or a file that cannot be read and written.
    """
    # An existing file is not even opened: closing it would release the locks that SQLite has on it in this
    # process, and another process that finishes with the database would then delete its journal.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _PRIVATE_FILE))
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a temporary folder in `parent`, and delete it at the end. Raises OSError.

    `parent` is created if it does not exist. Folders with this prefix that a killed process left are deleted
    too: a process keeps its folder locked, and the system ends the lock with the process.
    """
    make_private_folder(parent)
    for other in parent.glob(f"{prefix}*"):
        # It may be another user's, and another process may use it or remove it.
        with contextlib.suppress(OSError), locked_folder(other, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_locked:
            if is_locked or other.lstat().st_mtime < time.time() - _LEFTOVER_SECONDS:
                shutil.rmtree(other)
    while True:
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name,
            contextlib.ExitStack() as lock,
        ):
            with contextlib.suppress(FileNotFoundError):
                lock.enter_context(locked_folder(Path(name), fcntl.LOCK_EX))
            # Before it had its lock, another process may have taken it for one that was left.
            if Path(name).exists():
                yield Path(name)
                return


@contextlib.contextmanager
def locked_folder(folder: Path, how: int) -> Iterator[bool]:
    """Lock a folder; yield whether the file system has locks.

    Raises BlockingIOError if another process has locked it and `how` says not to wait, FileNotFoundError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            raise
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def append_privately(path: Path) -> FileIO:
    """Open a private file for appending, unbuffered. Create it if it does not exist. Raises OSError."""
    return FileIO(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, _PRIVATE_FILE), "a")


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """Make all files private that this process creates in the block, including those of libraries."""
    before = os.umask(PRIVATE_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def write_whole(path: Path, *pieces: bytes) -> None:
    """Write a private file from these pieces, atomically. Raises OSError.

    Readers see the whole file or none. Once this returns, it survives a power cut, if its folder does.
    """
    with writing_whole(path) as file:
        _write(file.fileno(), pieces)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[IO[bytes]]:
    """Return a private file to write to; it gets its name at the end of the block. Raises OSError.

    After an exception, there is no file. Otherwise it is as `write_whole` says.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE_FILE)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 -- it is a descriptor
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    # The rename is a change of the folder.
    sync(path.parent)


def unfinished(name: str) -> str | None:
    """Return the name of the file that an unfinished file of `write_whole` was to become.

    Return None if `name` is not that of an unfinished file.
    """
    found = _UNFINISHED.fullmatch(name)
    return found[1] if found else None


def _write(descriptor: int, pieces: Sequence[bytes]) -> None:
    """Write all pieces, many with each call. Raises OSError.

    A file object needs two calls per photograph, which takes nearly twice the system time.
    """
    rest = [memoryview(piece) for piece in reversed(pieces) if piece]  # the next one last
    while rest:
        written = os.writev(descriptor, rest[: -_MAX_PIECES - 1 : -1])
        while written:  # a call may write only a part
            piece = rest.pop()
            if written < len(piece):
                rest.append(piece[written:])
            written -= min(written, len(piece))


def sync(path: Path) -> None:
    """Make the file's content, or the folder's entries, survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
