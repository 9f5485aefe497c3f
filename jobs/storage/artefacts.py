"""The artefacts of models: the files that runtimes other than Keras run, each under its SHA-256."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jobs.ledger import Ledger
from jobs.ledger.learning.runtimes import has_artefact
from jobs.models.runtime import ModelRuntime
from jobs.storage.keras_files import KerasFile, fetch
from jobs.storage.store import Store


def put_artefact(store: Store, runtime: ModelRuntime, data: bytes) -> None:
    """Store a runtime's file. Raises Unavailable."""
    store.put(artefact_key(runtime), data)


def fetch_artefact(store: Store, runtime: ModelRuntime, cache_dir: Path) -> Path:
    """Return the path of a runtime's file on this machine. Raises what `fetch` raises."""
    name, sha256 = f"runtime {runtime.runtime}", runtime.sha256 or ""
    file = KerasFile(name, artefact_key(runtime), sha256, runtime.size_bytes or 0)
    return fetch(store, file, cache_dir, is_keras=False)


def remove_artefacts(ledger: Ledger, store: Store, runtimes: Iterable[ModelRuntime]) -> None:
    """Remove the files of runtimes that are no longer recorded. Raises Unavailable."""
    for sha256, key in {(each.sha256, artefact_key(each)) for each in runtimes if each.sha256}:
        with ledger.reading() as connection:
            is_used = has_artefact(connection, sha256)
        if not is_used:
            store.remove(key)


def artefact_key(runtime: ModelRuntime) -> str:
    """Return the key of a runtime's file in the store, which is also its path in the cache."""
    return f"models/{runtime.sha256}.{runtime.runtime.suffix}"
