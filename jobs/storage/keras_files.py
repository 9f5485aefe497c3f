"""Immutable `.keras` files in the store, each under its SHA-256, and their copies on this machine.

The hash and the content (`jobs.models.model_file`) are checked before anything parses a file, because loading
a Keras file can run code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jobs.errors import ModelRefused, Unavailable
from jobs.files import make_private_folder, write_whole
from jobs.models.model_file import check_model_file
from jobs.reading import why
from jobs.storage.store import Store


class KerasFile(NamedTuple):
    """A file in the store."""

    what: str  # whose file it is, for messages
    key: str  # in the store, and below the cache's folder
    sha256: str
    size_bytes: int


def fetch(store: Store, file: KerasFile, cache_dir: Path, *, is_keras: bool = True) -> Path:
    """Return the path of the file on this machine. Its SHA-256 is checked at each call.

    The content is checked only if `is_keras`: other formats hold no code. Raises ModelRefused if the file is
    gone, is not the one that was registered or may not be loaded, Unavailable if the store cannot be reached
    or this machine cannot keep the file.
    """
    cached = cache_dir / file.key
    with cache_errors(cached.parent):
        data = _read_cached(cached, file)
    from_store = data is None
    if data is None:
        data = read(store, file)
    if is_keras:
        try:
            check_model_file(data)
        except ModelRefused as error:
            raise ModelRefused(f"The file of {file.what} is refused. {error}") from None
    if from_store:
        with cache_errors(cached.parent):
            make_private_folder(cached.parent)
            write_whole(cached, data)
    return cached


def read(store: Store, file: KerasFile) -> bytes:
    """Return the file from the store, whatever is cached.

    Raises ModelRefused if it is gone or is not the one that was registered, Unavailable.
    """
    remedy = f"restore it from a backup, or use another {file.what.partition(' ')[0]}"
    try:
        data = store.get(file.key, limit=file.size_bytes)
    except FileNotFoundError:
        raise ModelRefused(f"The file of {file.what} is gone from the store: {remedy}.") from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise ModelRefused(
            f"The file of {file.what} is not the one that was registered, its SHA-256 differs: {remedy}."
        )
    return data


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Raise Unavailable if the folder of models cannot be used.

    A full disk, or a folder of another user, is not the fault of an image or a model.
    """
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"No model can be stored in {folder} ({why(error)}): is its disk full, or is it another user's?"
        ) from error


def _read_cached(path: Path, file: KerasFile) -> bytes | None:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return None
    data = path.read_bytes()
    return data if hashlib.sha256(data).hexdigest() == file.sha256 else None
