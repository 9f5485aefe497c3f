"""Training runs in the ledger: at most one is active, a lease protects it, and it can end in several ways."""

from __future__ import annotations

import logging
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning import runs
from jobs.ledger.learning.runs import (
    RUN_GRACE_SECONDS,
    FailureDetector,
    Run,
    RunClaim,
    RunLost,
    add_epoch,
    cancel_run,
    claim_run,
    clear_expired_run,
    describe_data,
    end_lost_runs,
    fail_run,
    find_active_run,
    finish_run,
    latest_runs,
    renew_run,
    request_run,
)
from jobs.models.model import Model
from jobs.queue import Publisher
from jobs.schema import RunState, db_now, training_runs
from jobs.settings import Settings
from tests.ledger_probes import change_run, run_of
from tests.threads import at_once
from worker.learning.task import execute_run
from worker.reconciler import Reconciler

RECIPE = {"architecture": "mlp", "epochs": 2, "seed": 7}
SLOT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def ask(ledger: Ledger, *, slot: datetime | None = None) -> str:
    """Request a run, and return its id."""
    run_id = new_id()
    with ledger.transaction() as connection:
        assert request_run(connection, run_id, recipe=RECIPE, slot=slot) == RunState.PENDING
    return run_id


def take(ledger: Ledger, run_id: str, *, owner: str = "host/1", lost: bool = False) -> RunClaim:
    """Claim the run; with `lost`, its lease has already expired."""
    with ledger.transaction() as connection:
        claim = claim_run(connection, run_id, owner=owner)
    assert claim is not None
    if lost:
        change_run(ledger, run_id, lease_until=db_now(-1))
    return claim


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Looker:
    """A process that looks for lost runs every two seconds, by its own clock."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.clock = Clock()
        self._detector = FailureDetector(self.clock)

    def looks(self, *, seconds: float = 0.0) -> list[Run]:
        """Return the runs it has ended, after one look or looks over that many seconds."""
        ended = []
        until = self.clock.now + seconds
        while True:
            with self._ledger.transaction() as connection:
                ended += end_lost_runs(connection, self._detector)
            if self.clock.now >= until:
                return ended
            self.clock.now += 2.0


def epoch(number: int) -> dict[str, float]:
    return {
        "epoch": number,
        "loss": 1 / number,
        "accuracy": 0.9,
        "val_loss": 0.2,
        "val_accuracy": 0.8,
        "seconds": 1.5,
    }


# ---- the life of a run --------------------------------------------------------------------------------


# ---- one at a time ------------------------------------------------------------------------------------


def test_a_slot_has_one_run_whoever_asks_first(ledger: Ledger) -> None:
    # given the run of a slot
    run_id = ask(ledger, slot=SLOT)
    assert run_of(ledger, run_id).slot == SLOT

    # when a second beat opens the slot, during that run or after it, then nothing happens
    with ledger.transaction() as connection:
        assert request_run(connection, new_id(), recipe=RECIPE, slot=SLOT) is None
    claim = take(ledger, run_id)
    with ledger.transaction() as connection:
        fail_run(connection, claim, "no data")
    with ledger.transaction() as connection:
        assert request_run(connection, new_id(), recipe=RECIPE, slot=SLOT) is None
    with ledger.reading() as connection:
        assert [run.id for run in latest_runs(connection, limit=9)] == [run_id]

    # and the next slot, which comes while another run is active, is skipped once
    ask(ledger)
    skipped, later = new_id(), SLOT + timedelta(days=7)
    with ledger.transaction() as connection:
        assert request_run(connection, skipped, recipe=RECIPE, slot=later) == RunState.SKIPPED
        assert request_run(connection, new_id(), recipe=RECIPE, slot=later) is None
    assert run_of(ledger, skipped).state == RunState.SKIPPED


@pytest.mark.parametrize("slot", [None, SLOT])
def test_of_many_who_ask_at_once_one_gets_a_run(
    ledger: Ledger, ledger_url: str, slot: datetime | None
) -> None:
    def ask_for_one(_: int) -> bool:
        try:
            with closing(Ledger(ledger_url)) as own, own.transaction() as connection:
                return request_run(connection, new_id(), recipe=RECIPE, slot=slot) == RunState.PENDING
        except Conflict:
            return False

    for _ in range(5):
        assert sum(at_once(ask_for_one, range(8))) == 1
        with ledger.transaction() as connection:
            assert [run.state for run in latest_runs(connection, limit=9)] == [RunState.PENDING]
            connection.execute(training_runs.delete())


# ---- the fence ----------------------------------------------------------------------------------------


def fenced(ledger: Ledger, claim: RunClaim, model: Model) -> list[str]:
    """Return the steps that the ledger still accepts with this claim."""
    steps = {
        "renew": lambda connection: renew_run(connection, claim),
        "describe": lambda connection: describe_data(connection, claim, source="s", fingerprint="f", data={}),
        "epoch": lambda connection: add_epoch(connection, claim, epoch(9)),
        "finish": lambda connection: finish_run(connection, claim, model_id=model.id, verdict="promoted"),
        "fail": lambda connection: fail_run(connection, claim, "late"),
    }
    done = []
    for name, step in steps.items():
        try:
            with ledger.transaction() as connection:
                step(connection)
        except RunLost:
            continue
        done.append(name)
    return done


def test_a_cancelled_run_is_its_trainers_no_more(ledger: Ledger, champion: Model) -> None:
    # given a running trainer
    claim = take(ledger, ask(ledger))

    # when a person cancels the run
    with ledger.transaction() as connection:
        cancelled = cancel_run(connection, claim.run_id, by="ann on box")
        assert (cancelled.state, cancelled.error) == (RunState.CANCELLED, "stopped by ann on box")
        with pytest.raises(RunLost, match=f"{claim.run_id} is cancelled: stopped by ann on box"):
            renew_run(connection, claim)

    # then none of the trainer's writes is accepted, and the run cannot be cancelled twice
    before = run_of(ledger, claim.run_id)
    assert fenced(ledger, claim, champion) == []
    assert run_of(ledger, claim.run_id) == before
    with (
        pytest.raises(Conflict, match="already finished: it is cancelled"),
        ledger.transaction() as connection,
    ):
        cancel_run(connection, claim.run_id)
    with pytest.raises(NotFound), ledger.transaction() as connection:
        cancel_run(connection, "nobody")


def test_a_second_message_about_a_finished_run_is_no_news(
    ledger: Ledger, champion: Model, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    claim = take(ledger, ask(ledger))
    execute_run(claim.run_id, settings)
    assert f"training run {claim.run_id} cannot be claimed: it is running" in caplog.text

    caplog.clear()
    with ledger.transaction() as connection:
        finish_run(connection, claim, model_id=champion.id, verdict="promoted")
    execute_run(claim.run_id, settings)
    assert "cannot be claimed" not in caplog.text


def test_a_trainer_with_another_token_may_nothing(ledger: Ledger, champion: Model) -> None:
    claim = take(ledger, ask(ledger))
    stranger = RunClaim(claim.run_id, new_id(), RECIPE)
    assert fenced(ledger, stranger, champion) == []
    assert run_of(ledger, claim.run_id).state == RunState.RUNNING


def test_an_epoch_that_is_recorded_renews_the_lease(ledger: Ledger) -> None:
    claim = take(ledger, ask(ledger), lost=True)
    with ledger.transaction() as connection:
        add_epoch(connection, claim, epoch(1))
    assert Looker(ledger).looks(seconds=60) == []
    assert run_of(ledger, claim.run_id).state == RunState.RUNNING


def test_a_lease_that_is_over_is_no_proof_that_the_trainer_is_dead(ledger: Ledger) -> None:
    # given a live trainer whose lease has expired, because its machine slept or the ledger was unavailable
    claim = take(ledger, ask(ledger), lost=True)

    # when others look for the first time before its next heartbeat, then the run goes on
    for _ in range(9):
        assert Looker(ledger).looks() == []
    with ledger.transaction() as connection:
        renew_run(connection, claim)

    # nor does a process end it that looks repeatedly, if heartbeats come within the grace period
    looker = Looker(ledger)
    for _ in range(9):
        change_run(ledger, claim.run_id, lease_until=db_now(-1))
        assert looker.looks(seconds=RUN_GRACE_SECONDS - 2) == []
        with ledger.transaction() as connection:
            renew_run(connection, claim)
    assert run_of(ledger, claim.run_id).state == RunState.RUNNING


def test_who_was_away_as_well_has_not_seen_that_the_trainer_was(ledger: Ledger) -> None:
    # given a process that has just seen an expired lease
    take(ledger, ask(ledger), lost=True)
    looker = Looker(ledger)
    assert looker.looks() == []

    # when it sleeps for an hour, as the trainer may have done, then its grace period starts again
    looker.clock.now += 3600
    assert looker.looks() == []
    assert looker.looks(seconds=RUN_GRACE_SECONDS) != []


def test_a_run_whose_trainer_died_is_interrupted_and_not_begun_again(ledger: Ledger, champion: Model) -> None:
    # given a trainer whose lease has expired
    claim = take(ledger, ask(ledger), lost=True)

    # when another process looks for the whole grace period
    [ended] = Looker(ledger).looks(seconds=RUN_GRACE_SECONDS)

    # then the run is interrupted, and its trainer cannot resume it
    assert (ended.state, ended.error) == (RunState.INTERRUPTED, "its trainer stopped sending heartbeats")
    assert fenced(ledger, claim, champion) == []
    with ledger.transaction() as connection:
        assert claim_run(connection, claim.run_id, owner="host/2") is None
        assert find_active_run(connection) is None
    assert Looker(ledger).looks(seconds=60) == []
    assert run_of(ledger, claim.run_id).state == RunState.INTERRUPTED


def test_who_wants_another_run_waits_no_longer_than_until_the_trainer_is_heard_of(ledger: Ledger) -> None:
    # given a run whose lease has expired, and a trainer that sends its next heartbeat
    claim = take(ledger, ask(ledger), lost=True)

    def beat(_run: Run) -> None:
        with ledger.transaction() as connection:
            renew_run(connection, claim)

    # when another run is requested, then it is refused, and the first goes on
    clear_expired_run(ledger, on_wait=beat)
    with pytest.raises(Conflict, match=f"{claim.run_id} is already running"):
        ask(ledger)
    # And no request waits for a live run
    clear_expired_run(ledger, on_wait=lambda run: pytest.fail(f"waits for {run}"))


# ---- a pending run ------------------------------------------------------------------------------------


def test_what_a_person_asked_for_waits_for_as_long_as_it_takes(ledger: Ledger) -> None:
    run_id = ask(ledger)
    change_run(ledger, run_id, requested_at=db_now(-30 * 86_400))
    with ledger.transaction() as connection:
        assert end_lost_runs(connection, FailureDetector()) == []
    take(ledger, run_id)


def test_the_reconciler_ends_what_nobody_will(
    ledger: Ledger, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = Reconciler(ledger, publisher, holder="anna")
    claim = take(ledger, ask(ledger), lost=True)
    reconciler.tick()
    assert run_of(ledger, claim.run_id).state == RunState.RUNNING
    # The same process must look twice.
    monkeypatch.setattr(runs, "RUN_GRACE_SECONDS", 0.0)
    reconciler.tick()
    assert run_of(ledger, claim.run_id).state == RunState.INTERRUPTED
