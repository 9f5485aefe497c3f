"""Models in the registry, without a training."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.ledger import Ledger
from jobs.ledger.learning.models import CHAMPION, point_alias
from jobs.models.dataset import MNIST
from jobs.models.model import MNIST_INPUT, InputSpec, Model
from jobs.storage.registry import register_model
from jobs.storage.store import Store


def register_digits(
    ledger: Ledger,
    store: Store,
    data: bytes,
    *,
    champion: bool = False,
    classes: Sequence[str] = "0123456789",
    input_spec: InputSpec = MNIST_INPUT,
    dataset: str = MNIST,
) -> Model:
    """Registers the bytes of a `.keras` file as a model for digits, and makes it the champion if asked to."""
    model = register_model(
        ledger,
        store,
        data,
        architecture="mlp",
        classes=tuple(classes),
        input_spec=input_spec,
        accuracy=None,
        metrics={},
        dataset=dataset,
    )
    if champion:
        with ledger.transaction() as connection:
            point_alias(connection, CHAMPION, model.id)
    return model
