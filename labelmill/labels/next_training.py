"""What corrections change: how many of them there are for the next training of a dataset."""

from __future__ import annotations

import math
from typing import NamedTuple

from sqlalchemy.engine import Connection

from jobs.ledger.learning.corrections import count_corrections
from jobs.models.promotion import MIN_LIVE_IMAGES
from labelmill.console.terminal import pluralize


class NextTraining(NamedTuple):
    """The corrections that there are for the next training of a dataset."""

    dataset: str
    corrections: int
    missing: int | None  # about so many more, and enough are kept to judge the model; None if none are kept

    def __str__(self) -> str:
        """Return it as a sentence."""
        # How many those are is known only to the training, which reads the pixels.
        count = pluralize(self.corrections, "correction")
        words = f"{self.dataset} has {count} for its next training, which leaves out test images"
        if self.missing:
            return f"{words}; with about {self.missing:,} more, models are judged by a part of them."
        return f"{words}." if self.missing is None else f"{words}; models are judged by a part of them."


def next_training(connection: Connection, dataset: str, live_share: float) -> NextTraining:
    """Return what there is. `live_share`, 0 to 1, of the corrections is kept to judge models."""
    corrections = count_corrections(connection, dataset)
    needed = math.ceil(MIN_LIVE_IMAGES / live_share) if live_share else None
    return NextTraining(dataset, corrections, None if needed is None else max(0, needed - corrections))
