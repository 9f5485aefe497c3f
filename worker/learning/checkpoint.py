"""The checkpoint of a training: what it needs to go on after its last epoch.

It is in the store, one for each dataset. A training that was interrupted goes on in the next run that is to
learn the same images by the same recipe.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.errors import NotFound, Unavailable
from jobs.ledger.learning.runs import get_run
from jobs.models.dataset import checkpoint_key
from jobs.schema import RunState
from worker.learning.epochs import Best, EpochResult
from worker.learning.recipes import Recipe
from worker.learning.trainer import Trainer
from worker.time_limit import time_ran_out

logger = logging.getLogger(__name__)

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The state of a training after an epoch."""

    epochs: list[EpochResult]
    seconds: float  # that the training has taken
    rng: dict[str, Any]  # the state of the generator that orders and shifts the images
    variables: Arrays  # of the network, of its average and of the optimizer
    best: Best | None


def save_checkpoint(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Store the checkpoint of the run in place of the dataset's last one.

    A store that is unavailable must not end the training: it is logged.
    """
    facts = {
        "run": trainer.claim.run_id,
        "epochs": [asdict(result) for result in checkpoint.epochs],
        "seconds": checkpoint.seconds,
        "rng": checkpoint.rng,
        "best": None if checkpoint.best is None else asdict(checkpoint.best.result),
    }
    arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
    arrays |= {f"variable{place}": each for place, each in enumerate(checkpoint.variables)}
    if checkpoint.best is not None:
        arrays |= {f"best{place}": each for place, each in enumerate(checkpoint.best.weights)}
    file = io.BytesIO()
    np.savez(file, **arrays)  # a ZIP file: its checksums show any damage
    try:
        trainer.store.put(checkpoint_key(trainer.claim.dataset), file.getvalue())
    except Unavailable as error:
        if time_ran_out(error):
            raise
        logger.warning("the training could not go on after epoch %d: %s", len(checkpoint.epochs), error)


def find_checkpoint(trainer: Trainer, recipe: Recipe, fingerprint: str) -> tuple[Recipe, Checkpoint | None]:
    """Return the checkpoint of the interrupted run that this one continues, if any, and its recipe.

    That run was to learn data with the same fingerprint by the same recipe. If nobody asked for a seed, this
    one takes that run's. Raises Unavailable.
    """
    try:
        with np.load(io.BytesIO(trainer.store.get(checkpoint_key(trainer.claim.dataset)))) as file:
            arrays = dict(file)
        facts = json.loads(str(arrays["facts"]))
        with trainer.ledger.reading() as connection:
            run = get_run(connection, facts["run"])
    except (FileNotFoundError, NotFound):
        return recipe, None
    except (ValueError, zipfile.BadZipFile) as error:
        logger.warning("the checkpoint of dataset %s cannot be read: %s", trainer.claim.dataset, error)
        return recipe, None
    before = Recipe.from_json(run.recipe)
    same = replace(recipe, seed=before.seed) if recipe.any_seed else recipe
    if (run.state, run.data_fingerprint) != (RunState.INTERRUPTED, fingerprint) or not same.learns_like(
        before
    ):
        return recipe, None
    epochs = [EpochResult(**each) for each in facts["epochs"]]
    logger.info("continues run %s, which was interrupted after epoch %d", run.id, len(epochs))
    best = facts["best"] and Best(EpochResult(**facts["best"]), _arrays_of(arrays, "best"))
    variables = _arrays_of(arrays, "variable")
    return same, Checkpoint(epochs, facts["seconds"], facts["rng"], variables, best)


def remove_checkpoint(trainer: Trainer) -> None:
    """Remove the dataset's checkpoint, because its run has made a model. Raises Unavailable."""
    trainer.store.remove(checkpoint_key(trainer.claim.dataset))


def _arrays_of(arrays: dict[str, npt.NDArray[Any]], kind: str) -> Arrays:
    return [arrays[f"{kind}{place}"] for place in range(sum(name.startswith(kind) for name in arrays))]
