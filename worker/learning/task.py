"""A training run, top to bottom: claim it, add images, then prepare, fit, judge and record."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from jobs.errors import LabelmillError, NotFound, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion
from jobs.ledger.learning.runs import RunClaim, RunLost, claim_run, fail_run, get_run
from jobs.ledger.learning.runtimes import list_runtimes
from jobs.ledger.workers import owner_name
from jobs.schema import RunState
from jobs.settings import Settings
from jobs.storage.store import Store
from worker.learning.add_images import add_images
from worker.learning.heartbeat import Heartbeat
from worker.learning.trainer import Trainer
from worker.message_filter import log_dropped
from worker.time_limit import time_ran_out

logger = logging.getLogger(__name__)


def execute_run(run_id: str, settings: Settings) -> None:
    """Execute a training run, unless it cannot be claimed.

    Raises RunLost if the run was cancelled or taken for dead. Any other error, such as DataUnavailable or
    Unavailable, is recorded in the run's row and raised.
    """
    with closing(Ledger(settings.ledger)) as ledger:
        claim = _claim_run(ledger, run_id)
        if claim is None:
            return
        with _kept(settings, ledger, claim) as trainer:
            with ledger.reading() as connection:
                replaced = find_champion(connection, claim.dataset)
            added = add_images(trainer)
            # Imported here, because they import TensorFlow.
            from worker.learning.compiling.compile import compile_if_slow
            from worker.learning.fit import fit
            from worker.learning.judge import judge
            from worker.learning.prepare import prepare
            from worker.learning.record import record

            prepared = prepare(trainer, added)
            fitted = fit(trainer, prepared)
            judged = judge(trainer, prepared.data, fitted)
            registered = record(trainer, prepared.data, prepared.recipe, judged, fitted.epochs)
        # After the run, so that no exporter can delay or fail a promotion. A refused model serves nobody.
        with ledger.reading() as connection:
            champion = find_champion(connection, claim.dataset)
            # Workers without TensorFlow serve the next champion only if it is compiled like the last one.
            before = [] if replaced is None else list_runtimes(connection, replaced.id)
        if champion is not None and champion.id == registered.id:
            runtimes = [each.runtime for each in before]
            compile_if_slow(ledger, trainer.store, settings, registered, judged.image_microseconds, runtimes)


def _claim_run(ledger: Ledger, run_id: str) -> RunClaim | None:
    """Claim a training run, or log why it cannot be claimed and return None. Raises Unavailable."""
    with ledger.transaction() as connection:
        claim = claim_run(connection, run_id, owner=owner_name(os.getpid()))
        if claim is None:
            try:
                state = get_run(connection, run_id).state
                # A second message about a finished run is normal: messages may come twice.
                level = logging.DEBUG if state == RunState.DONE else logging.INFO
                logger.log(level, "training run %s cannot be claimed: it is %s", run_id, state)
            except NotFound:
                log_dropped("it names no training run of this ledger")
        return claim


@contextmanager
def _kept(settings: Settings, ledger: Ledger, claim: RunClaim) -> Iterator[Trainer]:
    """Keep the run's lease while the block executes it. If the block fails, record why.

    Nothing is recorded if the run was lost.
    """
    with Heartbeat(settings, claim) as heartbeat:
        try:
            yield Trainer(settings, ledger, Store(settings.store), claim, heartbeat.check)
        except RunLost:
            raise
        except (KeyboardInterrupt, SystemExit):
            _record_end(ledger, claim, RunState.INTERRUPTED, "its trainer was stopped")
            raise
        except BaseException as error:
            _record_end(ledger, claim, RunState.FAILED, _reason_for(error))
            raise


def _record_end(ledger: Ledger, claim: RunClaim, state: RunState, error: str) -> None:
    # If the ledger is unavailable, the lease runs out. If the run was lost, its row already says why.
    with suppress(Unavailable, RunLost), ledger.transaction() as connection:
        fail_run(connection, claim, error, state=state)


def _reason_for(error: BaseException) -> str:
    if time_ran_out(error):
        return "it exceeded the time limit for a training run"
    return str(error) if isinstance(error, LabelmillError) else repr(error)
