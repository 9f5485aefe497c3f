"""Models in the registry, without a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jobs.ledger import Ledger
from jobs.ledger.learning.models import CHAMPION, point_alias
from jobs.ledger.learning.runtimes import list_runtimes, save_runtimes
from jobs.models.dataset import MNIST
from jobs.models.model import MNIST_INPUT, InputSpec, Model
from jobs.models.runtime import Runtime
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


def make_quickest(ledger: Ledger, model: Model, runtime: Runtime) -> None:
    """Record that this runtime is the quickest of those that the model was compiled for."""
    with ledger.transaction() as connection:
        found = list_runtimes(connection, model.id)
        speeds = [1.0 if each.runtime is runtime else 2.0 for each in found]
        changed = [replace(each, image_microseconds=speed) for each, speed in zip(found, speeds, strict=True)]
        save_runtimes(connection, model.id, changed)
