"""Workers say that they are there, and health checks look at what they said."""

from __future__ import annotations

import os
import socket

import pytest
import sqlalchemy as sa
from kombu.exceptions import OperationalError

from jobs.errors import Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.runs import claim_run, request_run
from jobs.ledger.workers import (
    FORGOTTEN_SECONDS,
    GONE_SECONDS,
    WorkerRow,
    WorkerStatus,
    list_workers,
    report_worker,
)
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.queue import Publisher, make_app
from jobs.schema import db_now
from jobs.schema import workers as table
from jobs.settings import Settings
from labelmill.readiness import Part, readiness
from worker import presence as presence_module
from worker.context import owner_name
from worker.heartbeat import WorkerRow
from worker.reconcile import Reconciler


@pytest.fixture
def row(ledger, publisher) -> WorkerRow:
    return WorkerRow(ledger, publisher, queue=CLASSIFY_QUEUE)


def listed(ledger: Ledger) -> list[WorkerStatus]:
    with ledger.reading() as connection:
        return list_workers(connection)


def report(ledger: Ledger, name: str, *, queue: str = CLASSIFY_QUEUE, children: int = 1) -> None:
    """A worker of this host's."""
    names = [f"{name}-child{number}" for number in range(children)]
    with ledger.transaction() as connection:
        presence = WorkerRow(name, socket.gethostname(), queue, names, "0.1.0")
        report_worker(connection, presence, up_seconds=5)


def let_pass(ledger: Ledger, seconds: float) -> None:
    """As if the signs of life were older."""
    with ledger.transaction() as connection:
        connection.execute(table.update().values(seen_at=db_now(-seconds)))


# ---- the row ------------------------------------------------------------------------------------------


def test_a_worker_says_who_it_is_and_what_its_processes_are_at(ledger, make_job, new_worker, row):
    # Given a worker with two processes, of which one has claimed a chunk
    assert row.tick([17, 18])
    job = make_job([1])
    new_worker(owner_name(18)).must_claim(job.chunks[0])

    # Then all that is told
    [worker] = listed(ledger)
    assert (worker.name, worker.host) == (owner_name(os.getpid()), socket.gethostname())
    assert (worker.queue, worker.processes, worker.chunks) == (CLASSIFY_QUEUE, 2, (job.chunks[0].id,))
    assert worker.alive
    assert worker.run is None
    assert worker.started_at <= worker.seen_at


def test_a_trainer_says_which_run_it_is_at(ledger):
    report(ledger, "trainer", queue=RETRAIN_QUEUE)
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        claim_run(connection, run_id, owner="trainer-child0")
    [trainer] = listed(ledger)
    assert trainer.run == run_id


def test_a_sign_is_given_when_it_is_due_or_processes_have_changed(ledger, row, monkeypatch):
    # Given a worker whose processes are still loading their model
    assert row.tick([])
    assert not row.tick([])
    assert listed(ledger)[0].processes == 0

    # When one is ready, Then that is told at once
    assert row.tick([17])
    assert listed(ledger)[0].processes == 1
    assert not row.tick([17])

    # And when it is time, it is seen again
    let_pass(ledger, 100)
    monkeypatch.setattr(presence_module, "HEARTBEAT_SECONDS", 0.0)
    assert row.tick([17])
    [worker] = listed(ledger)
    assert worker.seen_seconds < 50


def test_a_worker_without_a_broker_gives_no_sign(ledger, settings, short_folder):
    # Given a broker that is away, and a ledger that is well
    away = make_app(Settings(home=settings.home, broker_url=f"redis+socket://{short_folder}/nobody.sock"))
    row = WorkerRow(ledger, Publisher(away), queue=CLASSIFY_QUEUE)

    # When it is time for a sign, Then none is given
    with pytest.raises(OperationalError):
        row.tick([17])
    away.close()
    assert listed(ledger) == []


def test_a_worker_without_a_ledger_gives_its_sign_when_it_is_back(ledger, row, monkeypatch):
    # Given a ledger that is away when a worker gives its sign, twice
    real = presence_module.report_worker
    troubles = [Unavailable("The ledger cannot be reached")] * 2

    def away_twice(*arguments, **named):
        if troubles:
            raise troubles.pop()
        real(*arguments, **named)

    monkeypatch.setattr(presence_module, "report_worker", away_twice)
    for _ in range(2):  # it is tried again, not taken for given
        with pytest.raises(Unavailable):
            row.tick([17])
    assert listed(ledger) == []

    # When it is back, Then the next look gives it, though it would not be due
    assert row.tick([17])
    assert [worker.processes for worker in listed(ledger)] == [1]
    assert not row.tick([17])


def test_a_worker_that_stops_takes_its_row_away(ledger, row):
    report(ledger, "another")
    row.tick([17])
    row.end()
    assert [worker.name for worker in listed(ledger)] == ["another"]


def test_a_worker_that_was_not_seen_for_a_day_is_forgotten(ledger, publisher):
    # Given two workers that were seen long ago, one of them less than a day
    report(ledger, "long gone")
    let_pass(ledger, FORGOTTEN_SECONDS + 1)
    report(ledger, "gone")
    with ledger.transaction() as connection:
        connection.execute(
            table.update().where(table.c.name == "gone").values(seen_at=db_now(-FORGOTTEN_SECONDS / 2))
        )

    # When somebody reconciles, Then one is left
    Reconciler(ledger, publisher, holder="anna").tick()
    [worker] = listed(ledger)
    assert (worker.name, worker.alive) == ("gone", False)


def test_a_process_of_the_same_name_is_another_worker(ledger):
    # In a container the main process has the same name after each restart.
    report(ledger, "host/1")
    with ledger.transaction() as connection:
        report_worker(connection, WorkerRow("host/1", "host", RETRAIN_QUEUE, ["a", "b"], "9"), up_seconds=0)
    [worker] = listed(ledger)
    assert (worker.queue, worker.processes, worker.version) == (RETRAIN_QUEUE, 2, "9")


# ---- health -------------------------------------------------------------------------------------------


def test_a_worker_is_ready_while_it_was_seen_lately_and_has_a_process(ledger, settings):
    # Given nobody, then a worker whose processes are loading, then one that is ready, then one that is gone
    assert "no worker of this host" in answer(settings, Part.WORKER, ready=False)
    report(ledger, "host/1", children=0)
    assert "without a process" in answer(settings, Part.WORKER, ready=False)
    report(ledger, "host/1", children=2)
    assert "with 2 processes" in answer(settings, Part.WORKER, ready=True)
    let_pass(ledger, GONE_SECONDS + 1)
    assert "31 s ago, and not since" in answer(settings, Part.WORKER, ready=False)


def test_the_worker_of_another_host_or_queue_is_no_sign_of_ones_own(ledger, settings):
    # Given a trainer here, and a worker elsewhere
    report(ledger, "host/1", queue=RETRAIN_QUEUE)
    with ledger.transaction() as connection:
        there = WorkerRow("there/1", "there", CLASSIFY_QUEUE, ["there/2"], "0")
        report_worker(connection, there, up_seconds=1)

    # Then this host has a trainer, and no worker
    answer(settings, Part.TRAINER, ready=True)
    answer(settings, Part.WORKER, ready=False)


def test_a_worker_that_was_replaced_is_as_well_as_the_new_one(ledger, settings):
    report(ledger, "host/1")
    let_pass(ledger, 20)
    report(ledger, "host/2", children=0)
    answer(settings, Part.WORKER, ready=False)
    report(ledger, "host/2", children=3)
    assert "host/2" in answer(settings, Part.WORKER, ready=True)


@pytest.mark.parametrize("part", [Part.BEAT, Part.PRODUCER])
def test_beat_and_a_producer_are_ready_where_ledger_and_broker_answer(ledger, settings, short_folder, part):
    assert answer(settings, part, ready=True) == "ledger and broker answer"

    # Without a broker they are not
    away = settings.model_copy(update={"broker_url": f"redis+socket://{short_folder}/nobody.sock"})
    assert "the broker does not answer" in answer(away, part, ready=False)

    # Nor with a ledger of another version
    of_version(ledger, "9999")
    assert "9999" in answer(settings, part, ready=False)


def of_version(ledger, number):
    with ledger.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :number"), {"number": number})


def test_a_worker_goes_on_with_a_ledger_that_was_migrated_meanwhile(ledger, settings):
    # Given a worker, and a ledger that the next version has migrated
    report(ledger, "host/1")
    of_version(ledger, "9999")
    # Then it is as well as before, for nobody is there yet to take its place
    answer(settings, Part.WORKER, ready=True)
    # and with an older ledger than its own it never was.
    of_version(ledger, "0000")
    assert "0000" in answer(settings, Part.WORKER, ready=False)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_asking_makes_no_ledger(settings, short_folder):
    nobodys = short_folder / "nobodys" / "ledger.sqlite3"
    away = settings.model_copy(update={"ledger_url": f"sqlite:///{nobodys}"})
    answer(away, Part.PRODUCER, ready=False)
    assert not nobodys.parent.exists()


def answer(settings: Settings, part: Part, *, ready: bool) -> str:
    found = readiness(settings, part)
    assert found.ready == ready, found.reason
    assert "\n" not in found.reason
    return found.reason
