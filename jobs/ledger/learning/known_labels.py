"""The true labels in a job's manifest, and how often a model was right on images with a known label."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import batched
from jobs.ledger.learning.corrections import corrected_labels
from jobs.models.dataset import known_label
from jobs.models.evaluation import wilson
from jobs.schema import known_labels, predictions


@dataclass(frozen=True, slots=True)
class KnownAccuracy:
    """How often a model was right, among images whose true labels are known. There is at least one."""

    right: int
    images: int

    @property
    def accuracy(self) -> float:
        """Return `right` as a share of `images`, 0 to 1."""
        return self.right / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the accuracy."""
        return wilson(self.right, self.images)


def manifest_labels(
    connection: Connection, job_id: str, indices: Sequence[int] | None = None
) -> dict[int, str]:
    """Return the true labels that the job's manifest gives, by index: all of them, or those of `indices`."""
    query = sa.select(known_labels.c.index, known_labels.c.label).where(known_labels.c.job_id == job_id)
    parts = [query]
    if indices is not None:
        parts = [query.where(known_labels.c.index.in_(some)) for some in batched(indices)]
    # Interned, because a million images have a few classes.
    return {index: sys.intern(label) for part in parts for index, label in connection.execute(part)}


def count_known(
    connection: Connection, job_id: str, parts: Iterable[range], classes: Sequence[str]
) -> Counter[bool]:
    """Return how many labels of these parts of a job are right, and how many are wrong.

    Only images whose `known_label` is a class count; the correction of such an image replaces it.
    """
    # Not in SQL: neither database finds the folder of a name fast.
    corrected = corrected_labels(connection, job_id)
    known: Counter[bool] = Counter()
    names = frozenset(classes)
    table = predictions.c
    for part in parts:
        rows = sa.select(table.index, table.name, table.label, known_labels.c.label).outerjoin_from(
            predictions,
            known_labels,
            sa.and_(known_labels.c.job_id == table.job_id, known_labels.c.index == table.index),
        )
        rows = rows.where(
            table.job_id == job_id,
            table.index >= part.start,
            table.index < part.stop,
            table.label.is_not(None),
        )
        for index, name, label, of_manifest in connection.execute(rows):
            if (truth := known_label(name, of_manifest)) in names:
                known[corrected.get(index, truth) == label] += 1
    return known
