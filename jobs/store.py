"""The object store: payloads and model files under keys, behind an fsspec URL that every worker reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec

from jobs.errors import SettingsError, Unavailable
from jobs.files import make_private_folder, write_whole


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

    @staticmethod
    def _put_file(path: Path, data: bytes) -> None:
        try:
            write_whole(path, data)
        except FileNotFoundError:  # the first file of its folder
            make_private_folder(path.parent)
            write_whole(path, data)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
