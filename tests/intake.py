"""What an intake process does with the next batch, without the process."""

from __future__ import annotations

from jobs.ledger import Ledger
from jobs.ledger.api.batches import claim_intake
from jobs.queue import Publisher
from jobs.settings import Settings
from jobs.storage.store import Store
from producer.intake import begin_turn, take_in


def take_in_next(
    ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, *, owner: str
) -> bool:
    """Take in the images of the next batch that waits. Return False if none waits."""
    with ledger.transaction() as connection:
        intake = claim_intake(connection, owner=owner)
    if intake is None:
        return False
    take_in(ledger, store, publisher, settings, intake, begin_turn(intake))
    return True
