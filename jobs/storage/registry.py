"""The model registry: immutable model files in the store, and their rows in the ledger.

A file's key is its SHA-256. The hash and the content (`jobs.models.model_file`) are checked before anything
parses the file, because loading a Keras file can run code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from jobs.errors import Conflict, ModelRefused, Unavailable
from jobs.files import make_private_folder, write_whole
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.model_changes import remove_row
from jobs.ledger.learning.models import add_model, get_model, has_file
from jobs.models.dataset import MNIST
from jobs.models.model import InputSpec, Model
from jobs.models.model_file import check_model_file
from jobs.reading import why
from jobs.storage.store import Store

_REMEDY: Final = "restore it from a backup, or use another model"


def register_model(
    ledger: Ledger,
    store: Store,
    data: bytes,
    *,
    architecture: str,
    classes: tuple[str, ...],
    input_spec: InputSpec,
    accuracy: float | None,
    metrics: dict[str, Any],
    dataset: str = MNIST,
    logits: bool = False,
) -> Model:
    """Register a model from the bytes of a `.keras` file: store the file, then add its row.

    `logits` says that it answers logits, not probabilities. Raises ModelRefused if the file has another
    format or names what may not be loaded, Conflict if it is registered for another dataset, Unavailable.
    """
    check_model_file(data)
    sha256 = hashlib.sha256(data).hexdigest()
    key = model_key(sha256)
    store.put(key, data)
    with ledger.transaction() as connection:
        model_id = add_model(
            connection,
            model_id=new_id(),
            architecture=architecture,
            sha256=sha256,
            size_bytes=len(data),
            classes=classes,
            input_spec=input_spec,
            accuracy=accuracy,
            metrics=metrics,
            dataset=dataset,
            logits=logits,
        )
        model = get_model(connection, model_id)
    if model.dataset != dataset:
        raise Conflict(
            f"This file is registered already, as model {model.id} of dataset {model.dataset}. A model "
            "belongs to one dataset: use it there, or save it again and register the new file."
        )
    # `remove_model` in another process may have removed the file between the two.
    if not store.exists(key):
        store.put(key, data)
    return model


def remove_model(ledger: Ledger, store: Store, model: Model) -> None:
    """Remove a model that nothing refers to: its row, then its file.

    If it is interrupted in between, a file is left over that nobody needs. Raises NotFound, Conflict if
    anything refers to it, Unavailable.
    """
    key = model_key(model.sha256)
    try:
        data = store.get(key, limit=model.size_bytes)
    except FileNotFoundError:
        data = b""
    with ledger.transaction() as connection:
        remove_row(connection, model.id)
    if not data or _is_registered(ledger, model.sha256):
        return
    store.remove(key)
    # The same file may have been registered again meanwhile; `register_model` looks only before this.
    if _is_registered(ledger, model.sha256):
        store.put(key, data)


def _is_registered(ledger: Ledger, sha256: str) -> bool:
    with ledger.reading() as connection:
        return has_file(connection, sha256)


def fetch_model(store: Store, model: Model, cache_dir: Path) -> Path:
    """Return the path of the model's file on this machine. Its SHA-256 is checked at each call.

    Raises ModelRefused if the file is gone, is not the one that was registered or may not be loaded,
    Unavailable if the store cannot be reached or this machine cannot keep the file.
    """
    cached = cache_dir / "models" / f"{model.sha256}.keras"
    with cache_errors(cached.parent):
        data = _read_cached(cached, model)
    from_store = data is None
    if data is None:
        data = read_stored(store, model)
    try:
        check_model_file(data)
    except ModelRefused as error:
        raise ModelRefused(f"The file of model {model.id} is refused. {error}") from None
    if from_store:
        with cache_errors(cached.parent):
            make_private_folder(cached.parent)
            write_whole(cached, data)
    return cached


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


def _read_cached(path: Path, model: Model) -> bytes | None:
    if not path.is_file() or path.stat().st_size != model.size_bytes:
        return None
    data = path.read_bytes()
    return data if _digest(data) == model.sha256 else None


def read_stored(store: Store, model: Model) -> bytes:
    """Return the model's file from the store, whatever is cached.

    Raises ModelRefused if it is gone or is not the one that was registered, Unavailable.
    """
    try:
        data = store.get(model_key(model.sha256), limit=model.size_bytes)
    except FileNotFoundError:
        raise ModelRefused(f"The file of model {model.id} is gone from the store: {_REMEDY}.") from None
    if _digest(data) != model.sha256:
        raise ModelRefused(
            f"The file of model {model.id} is not the one that was registered, its SHA-256 differs: "
            f"{_REMEDY}."
        )
    return data


def model_key(sha256: str) -> str:
    """Return the key of a model's file in the store."""
    return f"models/{sha256}.keras"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
