"""Execute one training run: load the data, train, evaluate, register, judge, promote.

The last step is one transaction, and no step before it changes the champion: a run that fails, is stopped or
is killed leaves the champion as it was. `jobs.ledger.runs` records which trainer owns the run;
`worker.learning.heartbeat` renews that claim while the run lasts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from sqlalchemy.engine import Connection

from jobs.errors import DataUnavailable, LabelmillError, ModelRefused, Unavailable
from jobs.files import temporary_folder
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.models import get_model, save_evaluation
from jobs.ledger.runs import (
    Run,
    RunClaim,
    RunLost,
    add_epoch,
    claim_run,
    clear_expired_run,
    describe_data,
    fail_run,
    finish_run,
    get_run,
    request_run,
    was_finished_by,
)
from jobs.model import MNIST_INPUT, Model
from jobs.promotion import judge_and_promote
from jobs.registry import register_model
from jobs.schema import RunState
from jobs.settings import Settings
from jobs.store import Store
from jobs.store_identity import check_store
from worker.context import owner_name
from worker.learning import mnist
from worker.learning.corrections import add_corrections
from worker.learning.evaluation import Evaluated, evaluate, evaluate_champion
from worker.learning.heartbeat import Heartbeat
from worker.learning.recipes import Recipe
from worker.learning.training import EpochResult, precision, save, train
from worker.predicting.classifier import Classifier
from worker.predicting.time_limit import time_ran_out
from worker.retry import log_retry, retry

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Pauses before an operation that needs a service is retried: a restarting database needs seconds, while a
#: repeated training takes minutes or hours.
_AGAIN_SECONDS: Final = (0.5, 2.0, 5.0, 10.0)

#: Additional retries at the last pause once the model is trained, because giving up would waste the training.
#: Together they last longer than a lease without a heartbeat.
_INSISTS: Final = 6

#: The minimum number of training images: one to learn from and one to hold out.
_FEWEST_IMAGES: Final = 2


@dataclass(frozen=True, slots=True)
class Retrained:
    """The result of a training run."""

    run_id: str
    model: Model
    reason: str  # the verdict's, one sentence


def begin_run(
    settings: Settings, recipe: Recipe, *, on_wait: Callable[[Run], None] = lambda _run: None
) -> RunClaim:
    """Request a training run and claim it for this process in one transaction.

    `on_wait` is called as in `clear_expired_run`. Raises Conflict if another run is active, RunLost if
    another trainer claimed this one, Unavailable.
    """
    run_id = new_id()
    with closing(Ledger(settings.ledger)) as ledger:
        clear_expired_run(ledger, on_wait=on_wait)
        with ledger.transaction() as connection:
            request_run(connection, run_id, recipe=recipe.to_json())
            claim = claim_run(connection, run_id, owner=owner_name(os.getpid()))
    if claim is None:
        raise RunLost(f"Training run {run_id} was taken by somebody else.")
    return claim


def retrain(
    settings: Settings,
    claim: RunClaim,
    data: mnist.Mnist | None = None,
    *,
    replace: bool = True,
    on_batch: Callable[[int, int, int], None] = lambda _epoch, _done, _total: None,
    on_epoch: Callable[[EpochResult], None] = lambda _result: None,
) -> Retrained:
    """Execute a claimed run to its end, on `data` (MNIST by default) and all corrections.

    With `replace`, a better model becomes the champion; without it, only if there is no champion. Raises
    RunLost if the run was cancelled or taken for dead. Any other error, such as DataUnavailable or
    Unavailable, is recorded in the run's row and raised.
    """
    with closing(Ledger(settings.ledger)) as ledger, Heartbeat(settings, claim) as heartbeat:
        try:
            return _retrain(
                claim,
                data,
                ledger,
                heartbeat,
                settings=settings,
                replace=replace,
                on_batch=on_batch,
                on_epoch=on_epoch,
            )
        except RunLost:
            raise
        except (KeyboardInterrupt, SystemExit):
            _end(ledger, claim, RunState.INTERRUPTED, "its trainer was told to stop")
            raise
        except BaseException as error:
            _end(ledger, claim, RunState.FAILED, _words_of(error))
            raise


def _retrain(
    claim: RunClaim,
    given: mnist.Mnist | None,
    ledger: Ledger,
    heartbeat: Heartbeat,
    *,
    settings: Settings,
    replace: bool,
    on_batch: Callable[[int, int, int], None],
    on_epoch: Callable[[EpochResult], None],
) -> Retrained:
    store = Store(settings.store)
    _patiently(lambda: check_store(ledger, store))
    recipe = Recipe.from_json(claim.recipe)

    # the data: the given data or MNIST, and all corrections
    data = given or mnist.load(settings.mnist_dir, settings.cache_dir, say=logger.info)
    data = add_corrections(
        data,
        ledger,
        store,
        settings.image_limits,
        MNIST_INPUT,
        pauses=_AGAIN_SECONDS,
        check=heartbeat.check,
    )

    if len(data.train_images) < _FEWEST_IMAGES or not data.before_corrections:
        raise DataUnavailable(
            f"There are too few images to train with: {len(data.train_images)}, and it takes "
            f"{_FEWEST_IMAGES} at least, one to learn from and one that is held out. Name a folder with more "
            "of them in LABELMILL_MNIST_DIR."
        )

    # Before the transaction, which holds SQLite's write lock: tens of megabytes are hashed.
    fingerprint, description = data.fingerprint, _description(data, recipe)

    def describe() -> None:
        with ledger.transaction() as connection:
            describe_data(connection, claim, source=data.source, fingerprint=fingerprint, data=description)

    _patiently(describe)
    logger.info("training run %s: begins, on %s images", claim.run_id, f"{len(data.train_images):,}")

    # the training
    def batch_done(epoch: int, done: int, total: int) -> None:
        heartbeat.check()
        on_batch(epoch, done, total)

    epochs = _Epochs(ledger, claim)

    def epoch_done(result: EpochResult) -> None:
        epochs.add(result)
        on_epoch(result)

    trained = train(data, recipe, MNIST_INPUT, on_batch=batch_done, on_epoch=epoch_done)

    # the evaluation: the model is read back from its file by the code that will serve it
    # The temporary folder is in the cache: nothing is written outside the state folder.
    with temporary_folder(settings.cache_dir, "training-") as folder:
        path = folder / "model.keras"
        save(trained, path)
        classifier = Classifier.load(path, data.classes, MNIST_INPUT)
        classifier.warm_up()
        evaluated = evaluate(classifier, data.test_images, data.test_labels)
        heartbeat.check()
        file = path.read_bytes()
    try:
        _insistently(
            lambda: evaluate_champion(ledger, store, settings.cache_dir, data, on_begin=lambda _: None)
        )
    except (ModelRefused, Unavailable) as error:
        if time_ran_out(error):
            raise
        # The new model is still registered; the gate then reports that the two cannot be compared.
        logger.warning("the champion cannot be evaluated: %s", error)
    heartbeat.check()

    # the registry: file and hash first
    model = _insistently(
        lambda: register_model(
            ledger,
            store,
            file,
            architecture=recipe.architecture,
            classes=data.classes,
            input_spec=MNIST_INPUT,
            accuracy=evaluated.evaluation.accuracy,
            metrics={
                "data": data.source,
                "run": claim.run_id,
                "precision": precision(recipe.architecture),
            },
        )
    )

    # the verdict and the promotion, in one transaction
    reason = _conclude(
        ledger,
        claim,
        epochs,
        model,
        evaluated,
        settings=settings,
        data_fingerprint=data.evaluation_fingerprint,
        force=recipe.force,
        replace=replace,
    )
    logger.info("training run %s: %s (model %s)", claim.run_id, reason, model.id, extra={"model": model.id})

    def as_it_is_now() -> Model:
        with ledger.reading() as connection:
            return get_model(connection, model.id)

    return Retrained(claim.run_id, _insistently(as_it_is_now), reason)


class _Epochs:
    """Write epochs to the ledger as they finish.

    They are only informative, so a failed write must not end the training: an epoch that cannot be written is
    written with the next one, or at the latest with the verdict.
    """

    def __init__(self, ledger: Ledger, claim: RunClaim) -> None:
        self._ledger = ledger
        self._claim = claim
        self._waiting: list[EpochResult] = []

    def add(self, result: EpochResult) -> None:
        """Record one more epoch. Raises RunLost."""
        self._waiting.append(result)
        try:
            with self._ledger.transaction() as connection:
                self.write(connection)
        except Unavailable as error:
            if time_ran_out(error):
                raise
            logger.warning("epoch %d will be recorded with the next one: %s", result.epoch, error)
        else:
            self._waiting.clear()

    def write(self, connection: Connection) -> None:
        """Write the epochs that are not known to be in the ledger. Raises RunLost."""
        for result in self._waiting:
            add_epoch(connection, self._claim, asdict(result))


def _patiently(do: Callable[[], T]) -> T:
    """Return what `do` returns, retrying it if a service is unavailable.

    `do` must be safe to repeat. Raises Unavailable after the last retry.
    """
    return retry(do, _AGAIN_SECONDS, on_failure=log_retry)


def _insistently(do: Callable[[], T]) -> T:
    """Retry as `_patiently` does, but for longer: the model is trained already."""
    return retry(do, _AGAIN_SECONDS + _AGAIN_SECONDS[-1:] * _INSISTS, on_failure=log_retry)


def _description(data: mnist.Mnist, recipe: Recipe) -> dict[str, Any]:
    """Return the content of the column `training_runs.data`."""
    held_out = recipe.held_out_of(data.before_corrections)
    return {
        "train_images": len(data.train_images) - held_out,
        "validation_images": held_out,
        "evaluation_images": len(data.test_images),
        "corrections": data.corrections,
        "left_out": data.left_out,
        "classes": list(data.classes),
        "evaluation_fingerprint": data.evaluation_fingerprint,
    }


def _conclude(
    ledger: Ledger,
    claim: RunClaim,
    epochs: _Epochs,
    model: Model,
    evaluated: Evaluated,
    *,
    settings: Settings,
    data_fingerprint: str,
    force: bool,
    replace: bool,
) -> str:
    """Record the evaluation, judge and promote the model, and return the verdict's reason.

    If the connection breaks during COMMIT, the run's row shows whether it went through. Raises RunLost,
    Unavailable.
    """

    def conclude() -> str:
        try:
            with ledger.transaction() as connection:
                epochs.write(connection)
                save_evaluation(
                    connection,
                    model.id,
                    data_fingerprint,
                    evaluated.evaluation,
                    evaluated.answers.tobytes(),
                )
                verdict = judge_and_promote(
                    connection,
                    settings.gate_limits,
                    model.id,
                    how="retrain",
                    run_id=claim.run_id,
                    force=force,
                    replace=replace,
                    data_fingerprint=data_fingerprint,
                )
                finish_run(connection, claim, model_id=model.id, verdict=verdict.reason)
        except RunLost:
            with ledger.reading() as connection:
                if was_finished_by(connection, claim):  # an earlier COMMIT had gone through
                    return get_run(connection, claim.run_id).verdict or ""
            raise
        return verdict.reason

    return _insistently(conclude)


def _end(ledger: Ledger, claim: RunClaim, state: RunState, error: str) -> None:
    # If the ledger is unavailable, the lease runs out. If the run was lost, its row already says why.
    with suppress(Unavailable, RunLost), ledger.transaction() as connection:
        fail_run(connection, claim, error, state=state)


def _words_of(error: BaseException) -> str:
    if time_ran_out(error):
        return "it took longer than a training may"
    return str(error) if isinstance(error, LabelmillError) else repr(error)
