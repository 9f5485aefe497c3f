"""Find the images of a job that its model may have learnt: it would be evaluated on its training images."""

from __future__ import annotations

import hashlib

from jobs.ledger import Ledger
from jobs.ledger.learning.learnt import perhaps_learnt
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.labels.job_images import read_images


def learnt_images(
    ledger: Ledger, store: Store, settings: Settings, job_id: str, model_id: str
) -> frozenset[int]:
    """Return the indices of images that had been corrected before the model's training run.

    Their names find them and their bytes decide, so images that cannot be read again are not found. Those
    of the live set are among them, although no model learns it: only their pixels would tell. Raises
    Unavailable.
    """
    with ledger.reading() as connection:
        hashes = perhaps_learnt(connection, job_id, model_id)
    return frozenset(
        index
        for index, data in read_images(ledger, store, settings, job_id, list(hashes))
        if hashlib.sha256(data).hexdigest() in hashes[index]
    )
