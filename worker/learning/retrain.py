"""Execute one training run: load the data, train, evaluate, register, judge, promote.

The last step is one transaction, and no step before it changes the champion: a run that fails, is stopped or
is killed leaves the champion as it was. `jobs.ledger.learning.runs` records which trainer owns the run;
`worker.learning.heartbeat` renews that claim while the run lasts.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from sqlalchemy.engine import Connection

from jobs.errors import DataUnavailable, LabelmillError, ModelRefused, Unavailable, UserError
from jobs.files import temporary_folder
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.gate import effective_limits
from jobs.ledger.learning.models import get_model
from jobs.ledger.learning.promotion import judge_and_promote
from jobs.ledger.learning.runs import (
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
from jobs.ledger.workers import owner_name
from jobs.models.dataset import MNIST
from jobs.models.evaluation import Part
from jobs.models.model import InputSpec, Model
from jobs.schema import RunState
from jobs.settings import Settings
from jobs.storage.registry import cache_errors, fetch_model, register_model
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from worker.learning.corrections import add_corrections
from worker.learning.data import Data
from worker.learning.evaluation import evaluate_champion, evaluate_parts, save_evaluations
from worker.learning.heartbeat import Heartbeat
from worker.learning.loading import Dataset, open_dataset
from worker.learning.networks import Start, precision
from worker.learning.recipes import Recipe, fitted_to
from worker.learning.start_model import model_to_start_from
from worker.learning.training import EpochResult, save, train
from worker.predicting.classifier import Classifier, load_model
from worker.retry import retry
from worker.time_limit import time_ran_out

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Pauses, in seconds, before an operation that needs a service is retried: a restarting database needs
#: seconds, while a repeated training takes minutes or hours.
_RETRY_PAUSES: Final = (0.5, 2.0, 5.0, 10.0)

#: Additional retries at the last pause once the model is trained, because giving up would waste the training.
#: Together they last longer than a lease without a heartbeat.
_EXTRA_RETRIES: Final = 6

#: The minimum number of training images: one to learn from and one to hold out.
_MIN_IMAGES: Final = 2


@dataclass(frozen=True, slots=True)
class Retrained:
    """The result of a training run."""

    run_id: str
    model: Model
    reason: str  # the verdict's, one sentence


def begin_run(
    settings: Settings,
    recipe: Recipe,
    *,
    dataset: str = MNIST,
    on_wait: Callable[[Run], None] = lambda _run: None,
) -> RunClaim:
    """Request a training run on a dataset and claim it for this process in one transaction.

    `on_wait` is called as in `clear_expired_run`. Raises Conflict if another run is active, RunLost if
    another trainer claimed this one, Unavailable.
    """
    run_id = new_id()
    with closing(Ledger(settings.ledger)) as ledger:
        clear_expired_run(ledger, dataset, on_wait=on_wait)
        with ledger.transaction() as connection:
            request_run(connection, run_id, recipe=recipe.to_json(), dataset=dataset)
            claim = claim_run(connection, run_id, owner=owner_name(os.getpid()))
    if claim is None:
        raise RunLost(f"Another trainer has claimed training run {run_id}.")
    return claim


def retrain(
    settings: Settings,
    claim: RunClaim,
    dataset: Dataset | None = None,
    *,
    replace: bool = True,
    on_batch: Callable[[int, int, int], None] = lambda _epoch, _done, _total: None,
    on_epoch: Callable[[EpochResult], None] = lambda _result: None,
    on_data: Callable[[Recipe, InputSpec], None] = lambda _recipe, _spec: None,
    say: Callable[[str], None] = logger.info,
) -> Retrained:
    """Execute a claimed run to its end, on the latest version of its dataset and all corrections.

    `dataset` is given if it is loaded already. `on_data` is called when the data is loaded, with the recipe
    and the input that were chosen for it; `say` is called with a line of text before each slow step. With
    `replace`, a better model becomes the champion; without it, only if there is no champion. Raises RunLost
    if the run was cancelled or taken for dead. Any other error, such as DataUnavailable or Unavailable, is
    recorded in the run's row and raised.
    """
    with (
        closing(Ledger(settings.ledger)) as ledger,
        Heartbeat(settings, claim) as heartbeat,
        _failure_recorded(ledger, claim),
    ):
        store = Store(settings.store)
        retry(lambda: check_store(ledger, store), _RETRY_PAUSES)
        recipe = Recipe.from_json(claim.recipe)

        # the model that the training starts from, if any
        start_model = _start_model(ledger, claim.dataset, recipe)
        start = None if start_model is None else _load_start(store, settings, start_model)

        # the data, prepared for the new model, and all corrections
        images = dataset or open_dataset(
            settings,
            ledger,
            store,
            claim.dataset,
            pauses=_RETRY_PAUSES,
            check=heartbeat.check,
            say=say,
        )
        spec = start_model.input_spec if start_model else images.choose_input(recipe.size)
        prepared = retry(lambda: images.prepared(spec), _RETRY_PAUSES)
        data = _with_corrections(prepared, ledger, store, settings, heartbeat)
        recipe = dataclasses.replace(
            fitted_to(recipe, len(data.train), width=spec.width, height=spec.height, grey=spec.mode == "L"),
            start=start_model.id if start_model else None,
        )
        on_data(recipe, spec)

        # Before the transaction, which holds SQLite's write lock.
        description = _description(data, recipe)

        def describe() -> None:
            with ledger.transaction() as connection:
                describe_data(
                    connection,
                    claim,
                    source=data.source,
                    fingerprint=data.fingerprint,
                    data=description,
                    version=data.version,
                    recipe=recipe.to_json(),
                )

        retry(describe, _RETRY_PAUSES)
        logger.info("training run %s: begins, on %s images", claim.run_id, f"{len(data.train):,}")

        # the training
        def batch_done(epoch: int, done: int, total: int) -> None:
            heartbeat.check()
            on_batch(epoch, done, total)

        epochs = _EpochWriter(ledger, claim)

        def epoch_done(result: EpochResult) -> None:
            epochs.add(result)
            on_epoch(result)

        trained = train(data, recipe, start=start, on_batch=batch_done, on_epoch=epoch_done)

        # the evaluation: the model is read back from its file by the code that will serve it
        # The temporary folder is in the cache: nothing is written outside the state folder.
        with ExitStack() as stack:
            with cache_errors(settings.cache_dir):
                path = stack.enter_context(temporary_folder(settings.cache_dir, "training-")) / "model.keras"
                save(trained, path)
            classifier = Classifier.load(path, data.classes, spec)
            classifier.warm_up()
            evaluated = evaluate_parts(classifier, data)
            heartbeat.check()
            file = path.read_bytes()
        try:
            _retry_longer(lambda: evaluate_champion(ledger, store, settings.cache_dir, data))
        except (ModelRefused, UserError, Unavailable) as error:
            if time_ran_out(error):
                raise
            # The new model is still registered; the gate then reports that the two cannot be compared.
            logger.warning("the champion cannot be evaluated: %s", error)
        heartbeat.check()

        # the registry: file and hash first
        model = _retry_longer(
            lambda: register_model(
                ledger,
                store,
                file,
                architecture=recipe.architecture,
                classes=data.classes,
                input_spec=spec,
                accuracy=evaluated[Part.TEST].evaluation.accuracy,
                dataset=data.dataset,
                metrics={
                    "data": data.source,
                    "run": claim.run_id,
                    "precision": precision(recipe.architecture),
                },
            )
        )

        # the verdict and the promotion, in one transaction
        def conclude() -> str:
            try:
                with ledger.transaction() as connection:
                    epochs.write(connection)
                    save_evaluations(connection, model.id, data, evaluated)
                    verdict = judge_and_promote(
                        connection,
                        effective_limits(connection, claim.dataset, settings.gate_limits_of(claim.dataset)),
                        model.id,
                        how="retrain",
                        run_id=claim.run_id,
                        force=recipe.force,
                        replace=replace,
                        data_fingerprint=data.evaluation_fingerprint,
                    )
                    finish_run(connection, claim, model_id=model.id, verdict=verdict.reason)
            except RunLost:
                with ledger.reading() as connection:
                    if was_finished_by(connection, claim):  # an earlier COMMIT had gone through
                        return get_run(connection, claim.run_id).verdict or ""
                raise
            return verdict.reason

        reason = _retry_longer(conclude)
        logger.info(
            "training run %s: %s (model %s)", claim.run_id, reason, model.id, extra={"model": model.id}
        )

        def reload_model() -> Model:
            with ledger.reading() as connection:
                return get_model(connection, model.id)

        return Retrained(claim.run_id, _retry_longer(reload_model), reason)


def _start_model(ledger: Ledger, dataset: str, recipe: Recipe) -> Model | None:
    """Return the model that a fine-tuning starts from: the recipe's, else the dataset's champion.

    Raises NotFound if there is none.
    """
    if recipe.architecture != "finetune":
        return None

    def find() -> Model:
        with ledger.reading() as connection:
            return model_to_start_from(connection, dataset, recipe.start)

    return retry(find, _RETRY_PAUSES)


def _load_start(store: Store, settings: Settings, model: Model) -> Start:
    """Load the model that a fine-tuning starts from. Raises ModelRefused, Unavailable."""
    path = retry(lambda: fetch_model(store, model, settings.cache_dir), _RETRY_PAUSES)
    return Start(load_model(path), model.classes, logits=model.logits)


def _with_corrections(
    data: Data, ledger: Ledger, store: Store, settings: Settings, heartbeat: Heartbeat
) -> Data:
    """Return the data with all corrections, divided between the training images and the live set.

    Raises DataUnavailable if there are too few images to train with.
    """
    data = add_corrections(
        data,
        ledger,
        store,
        settings.image_limits,
        live_share=settings.live_share,
        pauses=_RETRY_PAUSES,
        check=heartbeat.check,
    )
    needed = 1 if len(data.validation) else _MIN_IMAGES
    if len(data.train) < needed or not data.before_corrections:
        more = (
            "Set LABELMILL_MNIST_DIR to a folder with more"
            if data.dataset == MNIST
            else f"Add more with `labelmill datasets add {data.dataset}`"
        )
        raise DataUnavailable(
            f"Training needs at least {_MIN_IMAGES} images, one to learn from and one to hold out, but there "
            f"are {len(data.train)}. {more}."
        )
    return data


@contextmanager
def _failure_recorded(ledger: Ledger, claim: RunClaim) -> Iterator[None]:
    """Record in the run's row why the enclosed code failed, unless the run was lost."""
    try:
        yield
    except RunLost:
        raise
    except (KeyboardInterrupt, SystemExit):
        _record_end(ledger, claim, RunState.INTERRUPTED, "its trainer was stopped")
        raise
    except BaseException as error:
        _record_end(ledger, claim, RunState.FAILED, _reason_for(error))
        raise


class _EpochWriter:
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


def _retry_longer(do: Callable[[], T]) -> T:
    """Retry for longer than before the training: the model is trained already."""
    return retry(do, _RETRY_PAUSES + _RETRY_PAUSES[-1:] * _EXTRA_RETRIES)


def _description(data: Data, recipe: Recipe) -> dict[str, Any]:
    """Return the content of the column `training_runs.data`."""
    held_out = 0 if len(data.validation) else recipe.held_out_of(data.before_corrections)
    return {
        "train_images": len(data.train) - held_out,
        "validation_images": held_out or len(data.validation),
        "evaluation_images": len(data.test),
        "corrections": data.corrections,
        "live_images": len(data.live),
        "left_out": data.left_out,
        "classes": list(data.classes),
        "evaluation_fingerprint": data.evaluation_fingerprint,
        "input": {"width": data.spec.width, "height": data.spec.height, "mode": data.spec.mode},
    }


def _record_end(ledger: Ledger, claim: RunClaim, state: RunState, error: str) -> None:
    # If the ledger is unavailable, the lease runs out. If the run was lost, its row already says why.
    with suppress(Unavailable, RunLost), ledger.transaction() as connection:
        fail_run(connection, claim, error, state=state)


def _reason_for(error: BaseException) -> str:
    if time_ran_out(error):
        return "it exceeded the time limit for a training run"
    return str(error) if isinstance(error, LabelmillError) else repr(error)
