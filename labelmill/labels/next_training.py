"""What corrections change: how many of them the next training of a dataset uses."""

from __future__ import annotations

import math
from typing import NamedTuple

from sqlalchemy.engine import Connection

from jobs.ledger.learning.corrections import count_corrections
from jobs.models.promotion import MIN_LIVE_IMAGES
from labelmill.console.terminal import pluralize


class NextTraining(NamedTuple):
    """The corrections that the next training of a dataset uses."""

    dataset: str
    corrections: int
    missing: int | None  # about so many more, and enough are kept to judge the model; None if none are kept

    def __str__(self) -> str:
        """Return it as a sentence."""
        used = f"The next training of {self.dataset} uses {pluralize(self.corrections, 'correction')}"
        if self.missing:
            return f"{used} (about {self.missing:,} more until it is judged by them)."
        return f"{used}." if self.missing is None else f"{used}, and is judged by a part of them."


def next_training(connection: Connection, dataset: str, live_share: float) -> NextTraining:
    """Return what the next training uses if this share of the corrections, 0 to 1, is kept to judge it."""
    corrections = count_corrections(connection, dataset)
    needed = math.ceil(MIN_LIVE_IMAGES / live_share) if live_share else None
    return NextTraining(dataset, corrections, None if needed is None else max(0, needed - corrections))
