"""What an intake process does with the next batch, without the process."""

from __future__ import annotations

from itertools import count
from unittest.mock import patch

from jobs.ledger import Ledger
from jobs.ledger.api.batches import claim_intake
from jobs.queue import Publisher
from jobs.settings import Settings
from jobs.storage.store import Store
from producer.intake import begin_turn, take_in


def take_in_next(
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    settings: Settings,
    *,
    owner: str,
    max_chunks: int | None = None,
) -> bool:
    """Take in the images of the next batch that waits, or its next chunks. Return False if none waits."""
    with ledger.transaction() as connection:
        intake = claim_intake(connection, owner=owner)
    if intake is None:
        return False
    turn = begin_turn(intake)
    taken = count(1)
    with patch.object(publisher, "wake_up", lambda: next(taken) == max_chunks and turn.over.set()):
        take_in(ledger, store, publisher, settings, intake, turn)
    return True
