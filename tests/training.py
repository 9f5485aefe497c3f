"""Request a training run, and execute it in this process."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.models import get_model
from jobs.ledger.learning.runs import get_run, request_run
from jobs.models.dataset import MNIST
from jobs.models.model import Model
from jobs.models.training_request import TrainingRequest
from jobs.settings import Settings
from worker.learning.recipes import Recipe, recipe_of
from worker.learning.task import execute_run


class Trained(NamedTuple):
    """What a run has made."""

    run_id: str
    model: Model
    reason: str  # the verdict's


def request(settings: Settings, recipe: Recipe, dataset: str = MNIST) -> str:
    """Request a run, and return its id."""
    run_id = new_id()
    with closing(Ledger(settings.ledger)) as ledger, ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe.to_json(), dataset=dataset)
    return run_id


def train(
    settings: Settings, recipe: Recipe, dataset: str = MNIST, *, keep_champion: bool = False
) -> Trained:
    """Train by this recipe on the dataset's latest version. Raises what the run ends with."""
    run_id = request(settings, replace(recipe, keep_champion=keep_champion), dataset)
    execute_run(run_id, settings)
    with closing(Ledger(settings.ledger)) as ledger, ledger.reading() as connection:
        run = get_run(connection, run_id)
        assert run.model_id is not None
        return Trained(run_id, get_model(connection, run.model_id), run.verdict or "")


def recipe(dataset: str = MNIST, **options: Any) -> Recipe:
    """Return the recipe for these options."""
    return recipe_of(TrainingRequest.of(dataset=dataset, **options))
