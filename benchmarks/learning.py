"""For the benchmarks of trainings: MNIST's digits as arrays, and a training run in this process."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jobs.ids import new_id
from jobs.ledger.learning.runs import request_run
from jobs.limits import ArchiveLimits, ImageLimits
from jobs.models.model import Model
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console.terminal import say
from labelmill.datasets.mnist import add_mnist_if_missing, idx_files
from producer.sources.idx import labels_beside, read_idx, read_labels
from producer.sources.image import Reading
from worker.learning.data import Uint8
from worker.learning.recipes import Recipe
from worker.learning.task import execute_run


class Digits(NamedTuple):
    """MNIST's images, uint8 (n, 28, 28), and labels."""

    train_images: Uint8
    train_labels: Uint8
    test_images: Uint8
    test_labels: Uint8


def read_mnist(settings: Settings) -> Digits:
    """Return MNIST, from where `labelmill train` takes it."""
    arrays: list[Uint8] = []
    with idx_files(settings, say, allow_sample=False) as folder:
        for prefix in ("train", "t10k"):
            path = str(next(folder.glob(f"{prefix}-images*")))
            found = read_idx(path, Reading(ImageLimits().max_bytes, ArchiveLimits()))
            pixels = b"".join((image.data or b"")[-28 * 28 :] for image in found)
            labels = read_labels(labels_beside(path) or "", ArchiveLimits())
            arrays += [np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)]
    return Digits(*arrays)


def add_mnist(client: Client, settings: Settings) -> None:
    """Add MNIST to the client's ledger, from where these settings have it."""
    own = client.settings.model_copy(update={"mnist_dir": settings.mnist_dir})
    add_mnist_if_missing(client.ledger, client.store, own, say=say)


def run_recipe(client: Client, dataset: str, recipe: Recipe) -> Model:
    """Train on the dataset's latest version in this process, and return the model."""
    run_id = new_id()
    with client.ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe.to_json(), dataset=dataset)
    execute_run(run_id, client.settings)
    return client.model(client.run(run_id).model_id)
