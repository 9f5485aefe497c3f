"""How often a model was right on images whose true class is known by the folders that they are in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.learning.corrections import corrected_labels
from jobs.models.dataset import folder_of
from jobs.models.evaluation import wilson
from jobs.schema import predictions


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


def count_known(
    connection: Connection, job_id: str, parts: Iterable[range], classes: Sequence[str]
) -> Counter[bool]:
    """Return how many labels of these parts of a job are right, and how many are wrong.

    Only images in folders named after a class count; the correction of such an image replaces its folder.
    """
    # Not in SQL: neither database finds the folder of a name fast.
    corrected = corrected_labels(connection, job_id)
    known: Counter[bool] = Counter()
    names = frozenset(classes)
    table = predictions.c
    for part in parts:
        rows = sa.select(table.index, table.name, table.label).where(
            table.job_id == job_id,
            table.index >= part.start,
            table.index < part.stop,
            table.label.is_not(None),
        )
        for index, name, label in connection.execute(rows):
            if (folder := folder_of(name)) in names:
                known[corrected.get(index, folder) == label] += 1
    return known
