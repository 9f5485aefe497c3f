"""What the four steps of a training run share: the run's claim, the ledger and the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from jobs.ledger import Ledger
from jobs.ledger.learning.runs import RunClaim
from jobs.settings import Settings
from jobs.storage.store import Store
from worker.backoff import retry

T = TypeVar("T")

#: Pauses, in seconds, before an operation that needs a service is retried: a restarting database needs
#: seconds, while a repeated training takes minutes or hours.
RETRY_PAUSES: Final = (0.5, 2.0, 5.0, 10.0)

#: Additional retries at the last pause once the model is trained, because giving up would waste the training.
#: Together they last longer than a lease without a heartbeat.
EXTRA_RETRIES: Final = 6


@dataclass(frozen=True, slots=True)
class Trainer:
    """One claimed run, and what it is executed with."""

    settings: Settings
    ledger: Ledger
    store: Store
    claim: RunClaim
    check: Callable[[], None]  # raises RunLost if the run was cancelled or taken for dead; cheap

    @property
    def pauses(self) -> tuple[float, ...]:
        """Return the pauses before retries, in seconds."""
        return RETRY_PAUSES

    def retry(self, do: Callable[[], T]) -> T:
        """Return what `do` returns, and retry it while a service is unavailable."""
        return retry(do, RETRY_PAUSES)

    def retry_longer(self, do: Callable[[], T]) -> T:
        """Retry for longer than before the training: the model is trained already."""
        return retry(do, RETRY_PAUSES + RETRY_PAUSES[-1:] * EXTRA_RETRIES)
