"""The last step of a training run: register the model, then give the verdict and promote.

Verdict, promotion and the end of the run are one transaction, and nothing before it changes the champion: a
run that fails, is stopped or is killed leaves the champion as it was.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from jobs.errors import Unavailable
from jobs.ledger.learning.gate import judge_and_promote, limits_of
from jobs.ledger.learning.runs import RunLost, finish_run, get_run, was_finished_by
from jobs.models.evaluation import Part
from jobs.models.model import Model
from jobs.storage.registry import register_model
from worker.learning.checkpoint import remove_checkpoint
from worker.learning.data import Data
from worker.learning.epochs import EpochWriter
from worker.learning.evaluation import save_evaluations
from worker.learning.judge import Judged
from worker.learning.networks import precision
from worker.learning.recipes import Recipe
from worker.learning.trainer import Trainer

logger = logging.getLogger(__name__)


def record(trainer: Trainer, data: Data, recipe: Recipe, judged: Judged, epochs: EpochWriter) -> Model:
    """Register the model, make it the champion if it passes the gate, and return it.

    Raises RunLost, Unavailable.
    """
    model = trainer.retry_longer(lambda: _register(trainer, data, recipe, judged))
    reason = trainer.retry_longer(lambda: _conclude(trainer, data, recipe, judged, epochs, model.id))
    if recipe.backbone is None:  # a transfer has no checkpoint
        with suppress(Unavailable):  # what stays names a finished run, so no run resumes it
            remove_checkpoint(trainer)
    run_id = trainer.claim.run_id
    logger.info("training run %s: %s (model %s)", run_id, reason, model.id, extra={"model": model.id})
    return model


def _register(trainer: Trainer, data: Data, recipe: Recipe, judged: Judged) -> Model:
    return register_model(
        trainer.ledger,
        trainer.store,
        judged.file,
        architecture=recipe.backbone or str(recipe.architecture),
        classes=data.classes,
        input_spec=data.spec,
        accuracy=judged.evaluated[Part.TEST].evaluation.accuracy,
        dataset=data.dataset,
        metrics={
            "data": data.source,
            "run": trainer.claim.run_id,
            "precision": precision(recipe.architecture),
            "temperature": judged.temperature,
            "uncalibrated_error": judged.uncalibrated_error,
            **({} if judged.cnn_microseconds is None else {"cnn_microseconds": judged.cnn_microseconds}),
        },
    )


def _conclude(
    trainer: Trainer, data: Data, recipe: Recipe, judged: Judged, epochs: EpochWriter, model_id: str
) -> str:
    """Give the verdict on the model and promote it, if it passes; end the run. Return the reason."""
    claim = trainer.claim
    try:
        with trainer.ledger.transaction() as connection:
            epochs.write(connection)
            save_evaluations(connection, model_id, data, judged.evaluated)
            verdict = judge_and_promote(
                connection,
                limits_of(connection, claim.dataset),
                model_id,
                how="retrain",
                run_id=claim.run_id,
                force=recipe.force,
                replace=not recipe.keep_champion,
                data_fingerprint=data.evaluation_fingerprint,
            )
            finish_run(connection, claim, model_id=model_id, verdict=verdict.reason)
    except RunLost:
        with trainer.ledger.reading() as connection:
            if was_finished_by(connection, claim):  # an earlier COMMIT had gone through
                return get_run(connection, claim.run_id).verdict or ""
        raise
    return verdict.reason
