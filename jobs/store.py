"""The object store: payloads and model files under keys, behind an fsspec URL that every worker reaches."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any, Final

import fsspec

from jobs.errors import SettingsError, Unavailable

_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600


class Store:
    """Immutable files by key. A file is there whole or not at all: readers never see half of one."""

    def __init__(self, url: str) -> None:
        """Opens nothing yet. Raises SettingsError where fsspec does not know the URL."""
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise SettingsError(f"LABELMILL_STORE_URL: {error}") from None
        # A folder is written by ourselves: fsspec neither renames into place nor waits for the disk.
        self._folder = Path(self._root) if "file" in _protocols(self._fs) else None
        self._folders_made: set[Path] = set()

    def put(self, key: str, data: bytes) -> None:
        """Keeps `data`; when this returns it survives a power cut. Raises Unavailable."""
        try:
            if self._folder is not None:
                self._put_file(self._folder / key, data)
            else:
                self._fs.pipe_file(f"{self._root}/{key}", data)
        except OSError as error:
            raise Unavailable(f"The store cannot be written: {error.strerror or error}") from error

    def get(self, key: str) -> bytes:
        """What `put` kept. Raises FileNotFoundError, or Unavailable."""
        try:
            if self._folder is not None:
                return (self._folder / key).read_bytes()
            data: bytes = self._fs.cat_file(f"{self._root}/{key}")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unavailable(f"The store cannot be read: {error.strerror or error}") from error
        return data

    def remove_folder(self, key: str) -> None:
        """Removes all below this key, if there is anything. Raises Unavailable."""
        try:
            self._fs.rm(f"{self._root}/{key}", recursive=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Unavailable(f"The store cannot be cleaned: {error.strerror or error}") from error

    def _put_file(self, path: Path, data: bytes) -> None:
        if path.parent not in self._folders_made:
            path.parent.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_FOLDER)
            self._folders_made.add(path.parent)
        write_whole(path, data)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a private file that is there whole or not at all, and on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    # The rename itself lies in the folder.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
