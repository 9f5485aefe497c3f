"""The model that all sides use: trained once by `labelmill train`, kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.learning.models import CHAMPION, find_champion, point_alias
from jobs.models.model import Model
from jobs.settings import Settings
from jobs.storage.registry import fetch_model, register_model
from jobs.storage.store import Store
from labelmill.client.migrating import open_ledger
from labelmill.console.terminal import say


@dataclass(frozen=True)
class TrainedModel:
    """A model's row, and its file on this machine."""

    row: Model
    path: Path


def train_once(work_dir: Path) -> TrainedModel:
    """Return the champion of a separate state folder. Raises LabelmillError if the training fails."""
    settings = Settings.load(home=work_dir / "model", ledger_url=None, broker_url=None, store_url=None)
    ledger = open_ledger(settings)
    try:
        with ledger.reading() as connection:
            champion = find_champion(connection)
        if champion is None:
            say("training the model")
            # In a process of its own: this one forks, and must not have TensorFlow's threads.
            command = [sys.executable, "-m", "labelmill", "train"]
            environment = os.environ | settings.environment()
            if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
                raise LabelmillError("The model could not be trained; the reason stands above.")
            with ledger.reading() as connection:
                champion = find_champion(connection)
    finally:
        ledger.close()
    assert champion is not None
    return TrainedModel(champion, fetch_model(Store(settings.store), champion, settings.cache_dir))


def make_champion(model: TrainedModel, ledger: Ledger, settings: Settings) -> Model:
    """Register the model in another ledger and store, as the champion; return its row there."""
    registered = register_model(
        ledger,
        Store(settings.store),
        model.path.read_bytes(),
        architecture=model.row.architecture,
        classes=model.row.classes,
        input_spec=model.row.input_spec,
        accuracy=model.row.accuracy,
        metrics=model.row.metrics,
        logits=model.row.logits,
    )
    with ledger.transaction() as connection:
        point_alias(connection, CHAMPION, registered.id)
    return registered
