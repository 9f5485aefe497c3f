"""The model registry: immutable model files in the store, their rows in the ledger, and the champion.

A file lies under its SHA-256, which is checked before anything parses it: loading a Keras file can run code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jobs.errors import ModelRefused
from jobs.files import make_private_folder, write_whole
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.models import add_model, get_model
from jobs.model import InputSpec, Model
from jobs.store import Store


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
) -> Model:
    """A new model from the bytes of a `.keras` file: first the file, then its row. Raises Unavailable."""
    sha256 = hashlib.sha256(data).hexdigest()
    store.put(_key(sha256), data)
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
        )
        return get_model(connection, model_id)


def fetch_model(store: Store, model: Model, cache_dir: Path) -> Path:
    """The model's file on this machine, its SHA-256 checked at each call.

    Raises ModelRefused where it is gone or not the file that was registered, Unavailable where the store
    cannot be reached.
    """
    cached = cache_dir / "models" / f"{model.sha256}.keras"
    if cached.is_file() and _digest(cached.read_bytes()) == model.sha256:
        return cached
    try:
        data = store.get(_key(model.sha256))
    except FileNotFoundError:
        raise ModelRefused(f"The file of model {model.id} is gone from the store.") from None
    if _digest(data) != model.sha256:
        raise ModelRefused(
            f"The file of model {model.id} is not the one that was registered: its SHA-256 differs."
        )
    make_private_folder(cached.parent)
    write_whole(cached, data)
    return cached


def _key(sha256: str) -> str:
    return f"models/{sha256}.keras"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
