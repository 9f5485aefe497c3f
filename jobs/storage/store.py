"""The object store: payloads and model files by key, behind an fsspec URL that every worker can reach."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from billiard.exceptions import SoftTimeLimitExceeded
from fsspec.implementations.local import LocalFileSystem

from jobs.errors import ASK_THE_DOCTOR, LabelmillError, SettingsError, Unavailable
from jobs.files import make_private_folder, sync, temporary_folder, write_whole, writing_whole
from jobs.network.objects import read_range, url_to_fs
from jobs.network.urls import without_secrets

#: Bytes that are read at a time of a file of any size.
_PIECE_BYTES: Final = 1024 * 1024

#: Bytes of an object that are sent at a time; memory holds two such parts. S3 allows 10,000 parts.
_PART_BYTES: Final = 16 * 1024 * 1024


class Store:
    """Immutable files by key. Readers see a file complete or not at all."""

    def __init__(self, url: str) -> None:
        """Open the store.

        Raises SettingsError if fsspec does not know the URL, Unavailable if its protocol connects at once and
        nothing answers.
        """
        #: The URL as it was given, with its secrets.
        self.url = url
        #: The store's folder, or None if it is not a local folder.
        self.folder: Path | None = None
        #: The identity that was found here (`jobs.storage.store_identity`), kept because a request to an
        #: object store takes long.
        self.identity: str | None = None
        with self._translating_errors("reached"):
            try:
                self._fs, self._root = url_to_fs(url)
            except (ValueError, ImportError) as error:
                raise SettingsError(f"LABELMILL_STORE_URL: {without_secrets(str(error), url)}") from None
        # Folders are written by our own code: fsspec neither renames into place nor waits for the disk.
        self.folder = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        #: Whether reading several keys at once, in threads, saves time: each costs a round trip.
        self.is_concurrent: bool = self._fs.async_impl

    def put(self, key: str, *pieces: bytes) -> None:
        """Store the pieces, joined, under the key. Raises Unavailable.

        When this returns, the bytes survive a power cut.
        """
        with self._translating_errors("written"):
            if self.folder is not None:
                self._put_file(self.folder / key, pieces)
            else:
                self._fs.pipe_file(f"{self._root}/{key}", b"".join(pieces))

    @contextmanager
    def writer(self, key: str) -> Iterator[Callable[[bytes | memoryview], None]]:
        """Yield a function that writes a piece; all pieces are stored under the key at the end of the block.

        After an exception, nothing is stored. When the block has ended, the bytes survive a power cut. Block
        and function raise Unavailable.
        """

        def write(piece: bytes | memoryview) -> None:
            with self._translating_errors("written"):
                file.write(piece)

        if self.folder is not None:
            path = self.folder / key
            with self._translating_errors("written"):
                made = make_private_folder(path.parent)
            with ExitStack() as stack:
                with self._translating_errors("written"):
                    file = stack.enter_context(writing_whole(path))
                yield write
                with self._translating_errors("written"):
                    stack.close()
                    _sync_entries(made)
            return
        with self._translating_errors("written"):
            file = self._fs.open(f"{self._root}/{key}", "wb", block_size=_PART_BYTES, autocommit=False)
        try:
            yield write
            with self._translating_errors("written"):
                file.close()
                file.commit()
        except BaseException:
            with suppress(Exception):
                file.discard()
            with suppress(AttributeError):
                file.closed = True  # or its finalizer would begin another upload
            raise

    @contextmanager
    def local_copy(self, key: str) -> Iterator[Path]:
        """Yield the path of a local file with the bytes of the key; it may be gone at the end of the block.

        Raises FileNotFoundError, Unavailable.
        """
        if not self.exists(key):
            self._check_kind(key.partition("/")[0])
            raise FileNotFoundError(key)
        if self.folder is not None:
            yield self.folder / key
            return
        with temporary_folder(Path(tempfile.gettempdir()), f"labelmill-{os.getuid()}-copy-") as folder:
            path = folder / "copy"
            with self._translating_errors("read"):
                self._fs.get_file(f"{self._root}/{key}", str(path))
            yield path

    def pieces(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield what is stored under the key, a piece at a time; or only the bytes from `start` to `stop`.

        Raises FileNotFoundError, Unavailable.
        """
        with self._translating_errors("read"), self._fs.open(f"{self._root}/{key}", "rb") as file:
            file.seek(start)
            left = sys.maxsize if stop is None else stop - start
            while piece := file.read(min(left, _PIECE_BYTES)):
                yield piece
                left -= len(piece)

    def get(self, key: str, *, limit: int | None = None) -> bytes:
        """Return what `put` stored, at most `limit` + 1 bytes, so the caller can detect excess length.

        Raises FileNotFoundError; Unavailable if there are no files of this kind at all: then a disk is not
        mounted on this machine, or this is another bucket, which must not be mistaken for a lost file.
        """
        end = None if limit is None else limit + 1
        with self._translating_errors("read"):
            try:
                if self.folder is not None:
                    with (self.folder / key).open("rb") as file:
                        return file.read(end)
                return read_range(self._fs, f"{self._root}/{key}", end)
            except FileNotFoundError:
                self._check_kind(key.partition("/")[0])
                raise

    def exists(self, key: str) -> bool:
        """Return whether there is such a file. Raises Unavailable."""
        with self._translating_errors("read"):
            try:
                if self.folder is not None:
                    (self.folder / key).stat()
                else:
                    self._fs.invalidate_cache()  # others write here too
                    self._fs.info(f"{self._root}/{key}")  # not `exists`, which takes any error for a no
            except FileNotFoundError:
                return False
        return True

    def folders(self, key: str) -> list[str]:
        """Return the names of the folders directly below this key, in no order. Raises Unavailable."""
        return self._names(key, "directory")

    def files(self, key: str) -> list[str]:
        """Return the names of the files directly below this key, in no order. Raises Unavailable."""
        return self._names(key, "file")

    def written_at(self, key: str) -> float | None:
        """Return when the file was written, in seconds since 1970, by the store's clock. Raises Unavailable.

        Return None if it does not exist or the protocol does not tell.
        """
        with suppress(FileNotFoundError), self._translating_errors("read"):
            self._fs.invalidate_cache()  # others write here too
            with suppress(NotImplementedError):
                moment = self._fs.modified(f"{self._root}/{key}")
                return moment.timestamp() if isinstance(moment, datetime) else None
        return None

    def folder_bytes(self, key: str) -> int:
        """Return the total size of all files below this key, in bytes. Raises Unavailable."""
        try:
            with self._translating_errors("read"):
                self._fs.invalidate_cache()  # others write here too
                files = self._fs.find(f"{self._root}/{key}", detail=True)
        except FileNotFoundError:
            return 0
        return sum(file["size"] or 0 for file in files.values())

    def remove_folder(self, key: str) -> None:
        """Remove everything below this key, if there is anything. Raises Unavailable."""
        with suppress(FileNotFoundError), self._translating_errors("cleaned"):
            self._fs.rm(f"{self._root}/{key}", recursive=True)

    def remove(self, key: str) -> None:
        """Remove what `put` stored, if it is there. Raises Unavailable."""
        with suppress(FileNotFoundError), self._translating_errors("cleaned"):
            self._fs.rm_file(f"{self._root}/{key}")

    def _names(self, key: str, kind: str) -> list[str]:
        try:
            with self._translating_errors("read"):
                self._fs.invalidate_cache()  # others write here too
                entries = self._fs.ls(f"{self._root}/{key}", detail=True)
        except FileNotFoundError:
            return []
        return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == kind]

    @contextmanager
    def _translating_errors(self, what: str) -> Iterator[None]:
        """Turn all exceptions of the fsspec package into Unavailable, except for a missing file.

        Packages have their own exceptions, which may quote the whole URL.
        """
        try:
            yield
        except (LabelmillError, SoftTimeLimitExceeded, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and what != "written":  # then there is no bucket
                raise
            if self.folder is not None and not isinstance(error, OSError):
                raise  # a mistake in our own code
            reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
            reason = without_secrets(reason.splitlines()[0], self.url)
            # Without the cause, because a stack trace would show the URL that it may quote.
            raise Unavailable(f"The store cannot be {what}: {reason}", note=ASK_THE_DOCTOR) from None

    def _check_kind(self, kind: str) -> None:
        """Raise Unavailable if there is no file of this kind at all."""
        self._fs.invalidate_cache()  # others write here too
        if self._fs.exists(f"{self._root}/{kind}"):
            return
        if self.folder is not None:
            found = f"there is no {self.folder / kind} on this machine. Is its disk mounted?"
        else:
            found = f"it has no {kind} at all. Is LABELMILL_STORE_URL the same for producers and workers?"
        raise Unavailable(f"The store cannot be read: {found}")

    @staticmethod
    def _put_file(path: Path, pieces: tuple[bytes, ...]) -> None:
        try:
            write_whole(path, *pieces)
        except FileNotFoundError:  # the first file of its folder
            made = make_private_folder(path.parent)
            write_whole(path, *pieces)
            _sync_entries(made)


def _sync_entries(folders: list[Path]) -> None:
    """Make new folders survive a power cut: each is an entry of its parent, which must be on the disk."""
    for folder in folders:
        sync(folder.parent)
