"""The model registry: immutable model files in the store, and their rows in the ledger."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.model_changes import remove_row
from jobs.ledger.learning.models import add_model, get_model, has_file
from jobs.ledger.learning.runtimes import list_runtimes
from jobs.models.dataset import MNIST
from jobs.models.model import InputSpec, Model
from jobs.models.model_file import check_model_file
from jobs.storage.artefacts import remove_artefacts
from jobs.storage.keras_files import KerasFile, fetch, read
from jobs.storage.store import Store


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
    """Remove a model that nothing refers to: its row, then its files.

    If it is interrupted in between, files are left over that nobody needs. Raises NotFound, Conflict if
    anything refers to it, Unavailable.
    """
    key = model_key(model.sha256)
    try:
        data = store.get(key, limit=model.size_bytes)
    except FileNotFoundError:
        data = b""
    with ledger.transaction() as connection:
        runtimes = list_runtimes(connection, model.id)
        remove_row(connection, model.id)
    remove_artefacts(ledger, store, runtimes)
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
    """Return the path of the model's file on this machine. Raises what `fetch` raises."""
    return fetch(store, _file_of(model), cache_dir)


def read_stored(store: Store, model: Model) -> bytes:
    """Return the model's file from the store, whatever is cached. Raises ModelRefused, Unavailable."""
    return read(store, _file_of(model))


def _file_of(model: Model) -> KerasFile:
    """Return where the model's file is."""
    return KerasFile(f"model {model.id}", model_key(model.sha256), model.sha256, model.size_bytes)


def model_key(sha256: str) -> str:
    """Return the key of a model's file in the store."""
    return f"models/{sha256}.keras"
