"""Save and load checkpoints, so that an interrupted training can be resumed.

The store has one per dataset. The next run resumes it if its images and its recipe are the same.
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from jobs.errors import NotFound, Unavailable
from jobs.ledger.learning.runs import Run, get_run
from jobs.models.dataset import checkpoint_key
from jobs.schema import RunState
from worker.learning.epochs import Best, EpochResult
from worker.learning.recipes import Recipe
from worker.learning.trainer import Trainer
from worker.time_limit import time_ran_out

logger = logging.getLogger(__name__)

Arrays = list[npt.NDArray[Any]]


#: The bytes of the digest in front of a checkpoint.
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The state of a training after an epoch."""

    epochs: list[EpochResult]
    seconds: float  # spent on the training so far
    rng: dict[str, Any]  # the state of the generator that orders and shifts the images
    variables: Arrays  # of the network, of its average and of the optimizer
    best: Best | None


def save_checkpoint(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Replace the dataset's checkpoint with this one.

    If the store is unavailable, log it: the training must not end.
    """
    metadata = {
        "software": _software(),
        "run": trainer.claim.run_id,
        "epochs": [asdict(result) for result in checkpoint.epochs],
        "seconds": checkpoint.seconds,
        "rng": checkpoint.rng,
        "best": None if checkpoint.best is None else asdict(checkpoint.best.result),
    }
    arrays: dict[str, Any] = {"metadata": np.array(json.dumps(metadata))}
    arrays |= {f"variable{place}": each for place, each in enumerate(checkpoint.variables)}
    if checkpoint.best is not None:
        arrays |= {f"best{place}": each for place, each in enumerate(checkpoint.best.weights)}
    file = io.BytesIO()
    np.savez(file, **arrays)
    content = file.getvalue()
    try:
        trainer.store.put(checkpoint_key(trainer.claim.dataset), blake3(content).digest(), content)
    except Unavailable as error:
        if time_ran_out(error):
            raise
        logger.warning("the checkpoint of epoch %d was not stored: %s", len(checkpoint.epochs), error)


def find_checkpoint(trainer: Trainer, recipe: Recipe, fingerprint: str) -> tuple[Recipe, Checkpoint | None]:
    """Return the recipe, and the checkpoint that this run resumes, or None.

    The interrupted run must have the same recipe, and data with the same fingerprint. If this run's seed was
    drawn at random, the recipe gets the interrupted run's seed. Raises Unavailable.
    """
    arrays = _read(trainer)
    if arrays is None:
        return recipe, None
    metadata = json.loads(str(arrays["metadata"]))
    run = _interrupted_run(trainer, metadata, fingerprint)
    if run is None:
        return recipe, None
    before = Recipe.from_json(run.recipe)
    same = replace(recipe, seed=before.seed) if recipe.is_seed_random else recipe
    if not same.trains_same_model(before):
        return recipe, None
    epochs = [EpochResult(**each) for each in metadata["epochs"]]
    logger.info("training run %s: resumes run %s after epoch %d", trainer.claim.run_id, run.id, len(epochs))
    best = metadata["best"] and Best(EpochResult(**metadata["best"]), _arrays_of(arrays, "best"))
    variables = _arrays_of(arrays, "variable")
    return same, Checkpoint(epochs, metadata["seconds"], metadata["rng"], variables, best)


def _read(trainer: Trainer) -> dict[str, npt.NDArray[Any]] | None:
    """Return what is stored for the dataset, or None if nothing is, or it is damaged. Raises Unavailable."""
    dataset = trainer.claim.dataset
    try:
        stored = trainer.store.get(checkpoint_key(dataset))
    except FileNotFoundError:
        return None
    digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    if blake3(content).digest() != digest:
        logger.warning("the checkpoint of dataset %s is damaged, so the training starts over", dataset)
        return None
    with np.load(io.BytesIO(content)) as file:
        return dict(file)


def _interrupted_run(trainer: Trainer, metadata: dict[str, Any], fingerprint: str) -> Run | None:
    """Return the run that stored a checkpoint, if it was interrupted and this software can resume it."""
    if metadata["software"] != _software():
        logger.info(
            "the checkpoint of run %s is from other versions: the training starts over", metadata["run"]
        )
        return None
    try:
        with trainer.ledger.reading() as connection:
            run = get_run(connection, metadata["run"])
    except NotFound:
        return None
    return run if run.state == RunState.INTERRUPTED and run.data_fingerprint == fingerprint else None


def remove_checkpoint(trainer: Trainer) -> None:
    """Remove the dataset's checkpoint, because its run has made a model. Raises Unavailable."""
    trainer.store.remove(checkpoint_key(trainer.claim.dataset))


def _software() -> list[str]:
    """Return the versions of what builds networks: another one may build a different network."""
    return [version(package) for package in ("labelmill", "keras", "tensorflow")]


def _arrays_of(arrays: dict[str, npt.NDArray[Any]], kind: str) -> Arrays:
    return [arrays[f"{kind}{place}"] for place in range(sum(name.startswith(kind) for name in arrays))]
