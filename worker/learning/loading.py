"""Find the data of a training run or an evaluation: MNIST, or a version of another dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import get_version
from jobs.models.dataset import MNIST
from jobs.models.model import InputSpec
from jobs.settings import Settings
from jobs.storage.store import Store
from worker.learning import mnist
from worker.learning.data import Data
from worker.learning.stored import StoredDataset
from worker.retry import retry


class Dataset(Protocol):
    """Labelled images that are not prepared for a model yet."""

    def choose_input(self, size: int | None) -> InputSpec:
        """Return the input of a model for these images, with `size` pixels in both directions if given."""

    def prepared(self, spec: InputSpec, *, for_training: bool = True) -> Data:
        """Return all images, or only the test set, prepared for a model with this input.

        Raises UserError if they cannot be prepared for it, Unavailable.
        """


def open_dataset(
    settings: Settings,
    ledger: Ledger,
    store: Store,
    name: str,
    *,
    pauses: Sequence[float] = (),
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Dataset:
    """Return the latest version of a dataset.

    If a service is unavailable, it is retried after each of `pauses`, in seconds. `check` is called often,
    and may raise; `say` is called with a line of text before each slow step. Raises NotFound,
    DataUnavailable, Unavailable.
    """
    if name == MNIST:
        return mnist.load(settings.mnist_dir, settings.cache_dir, say=say)

    def read() -> StoredDataset:
        with ledger.reading() as connection:
            version = get_version(connection, name)
        return StoredDataset(settings, store, version, pauses=pauses, check=check, say=say)

    return retry(read, pauses)
