"""The files of backbones in the store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jobs.ledger import Ledger
from jobs.ledger.learning.backbones import add_backbone, delete_backbone, get_backbone
from jobs.models.backbone import Backbone
from jobs.models.model import InputSpec
from jobs.models.model_file import check_model_file
from jobs.storage.keras_files import KerasFile, fetch
from jobs.storage.store import Store


def store_backbone(
    ledger: Ledger,
    store: Store,
    name: str,
    data: bytes,
    *,
    input_spec: InputSpec,
    features: int,
    source: str,
    licence: str | None,
) -> Backbone:
    """Store the bytes of a `.keras` file as a backbone: first the file, then its row.

    Raises ModelRefused if the file names what may not be loaded, Conflict if another backbone has this name,
    Unavailable.
    """
    check_model_file(data)
    sha256 = hashlib.sha256(data).hexdigest()
    store.put(_key(sha256), data)
    with ledger.transaction() as connection:
        return add_backbone(
            connection,
            name,
            sha256=sha256,
            size_bytes=len(data),
            input_spec=input_spec,
            features=features,
            source=source,
            licence=licence,
        )


def fetch_backbone(store: Store, backbone: Backbone, cache_dir: Path) -> Path:
    """Return the path of the backbone's file on this machine. Raises what `fetch` raises."""
    file = KerasFile(f"backbone {backbone.name}", _key(backbone.sha256), backbone.sha256, backbone.size_bytes)
    return fetch(store, file, cache_dir)


def remove_backbone(ledger: Ledger, store: Store, name: str) -> Backbone:
    """Remove a backbone: its row, then its file. The models that were trained on it stay.

    Return what it was. Raises NotFound, Unavailable.
    """
    with ledger.transaction() as connection:
        backbone = get_backbone(connection, name)
        shared = delete_backbone(connection, name)
    if not shared:
        store.remove(_key(backbone.sha256))
    return backbone


def _key(sha256: str) -> str:
    return f"backbones/{sha256}.keras"
