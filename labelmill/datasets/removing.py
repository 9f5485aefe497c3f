"""Remove datasets, and the folders that killed processes left behind."""

from __future__ import annotations

import time
from typing import Final

from jobs.ids import id_seconds, is_id
from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import manifests_of, remove_dataset
from jobs.models.dataset import checkpoint_key, dataset_folder, features_folder
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store

#: A folder without a version is removed once it is this old: until then, a process may still write to it.
_STRAY_SECONDS: Final = 24 * 3600


def remove(ledger: Ledger, store: Store, name: str) -> int:
    """Remove the dataset with all its images, and return the number of its versions.

    The models that were trained on it stay.

    Raises NotFound; Conflict if it has a champion or a challenger, or is being trained on, or if
    the store is not the one that the workers use; Unavailable.
    """
    check_store(ledger, store)
    with ledger.transaction() as connection:
        manifests = remove_dataset(connection, name)
    for key in manifests:
        store.remove_folder(key.rpartition("/")[0])
    store.remove_folder(features_folder(name))
    store.remove(checkpoint_key(name))
    remove_strays(ledger, store, name)
    return len(manifests)


def remove_strays(ledger: Ledger, store: Store, name: str) -> None:
    """Remove the folders that killed processes left of this dataset, once they are a day old.

    Raises Unavailable.
    """
    for key in stray_folders(ledger, store, name):
        store.remove_folder(key)


def stray_folders(ledger: Ledger, store: Store, name: str) -> list[str]:
    """Return the keys of the dataset's folders that belong to no version and are a day old.

    Raises Unavailable.
    """
    oldest = time.time() - _STRAY_SECONDS
    # Folders are listed before rows are read: a listed folder without a row is then a stray, or is young.
    folders = store.folders(dataset_folder(name))
    with ledger.reading() as connection:
        needed = {key.split("/")[-2] for key in manifests_of(connection, name)}
    return [
        f"{dataset_folder(name)}/{folder}"
        for folder in folders
        if is_id(folder) and folder not in needed and id_seconds(folder) < oldest
    ]
