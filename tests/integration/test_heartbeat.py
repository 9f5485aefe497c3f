"""Workers write heartbeats, and health checks read them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.errors import Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.counters import totals
from jobs.ledger.disks import STALE_SECONDS, list_disks
from jobs.ledger.learning.runs import claim_run, request_run
from jobs.ledger.workers import (
    FORGOTTEN_SECONDS,
    GONE_SECONDS,
    WorkerRow,
    WorkerStatus,
    list_workers,
    owner_name,
    report_worker,
)
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE, WEBHOOK_QUEUE
from jobs.schema import db_now, disks
from jobs.schema import workers as table
from jobs.settings import Settings
from labelmill.operations.readiness import ALIVE_SECONDS, Part, liveness, readiness
from tests.console import Home, until
from worker import heartbeat as heartbeat_module
from worker.children import MANY_DEATHS
from worker.heartbeat import Heartbeat
from worker.reconciler import Reconciler, reported_disks


@pytest.fixture
def heartbeat(settings) -> Heartbeat:
    disks = reported_disks(settings, CLASSIFY_QUEUE)
    return Heartbeat(queue=CLASSIFY_QUEUE, alive_file=settings.alive_file(CLASSIFY_QUEUE), disks=disks)


def listed(ledger: Ledger) -> list[WorkerStatus]:
    with ledger.reading() as connection:
        return list_workers(connection)


def report(ledger: Ledger, name: str, *, queue: str = CLASSIFY_QUEUE, children: int = 1) -> None:
    """Write the heartbeat of a worker on this host."""
    names = [f"{name}-child{number}" for number in range(children)]
    with ledger.transaction() as connection:
        report_worker(connection, WorkerRow(name, socket.gethostname(), queue, names, "0.1.0"), up_seconds=5)


def let_pass(ledger: Ledger, seconds: float) -> None:
    """Make all heartbeats that old."""
    with ledger.transaction() as connection:
        connection.execute(table.update().values(seen_at=db_now(-seconds)))


# ---- the row ------------------------------------------------------------------------------------------


def test_a_worker_is_listed_with_the_chunks_of_its_processes(ledger, make_job, new_worker, heartbeat):
    # given a worker with two processes, of which one has claimed a chunk
    assert heartbeat.tick(ledger, [17, 18])
    make_job([1])
    [claim] = new_worker(owner_name(18)).claim_next()

    # then the list shows the worker and that chunk
    [worker] = listed(ledger)
    assert (worker.name, worker.host) == (owner_name(os.getpid()), socket.gethostname())
    assert (worker.queue, worker.processes, worker.chunks) == (CLASSIFY_QUEUE, 2, (claim.chunk_id,))
    assert worker.alive
    assert worker.run is None
    assert worker.started_at <= worker.seen_at


def test_a_trainer_is_listed_with_its_run(ledger):
    report(ledger, "trainer", queue=RETRAIN_QUEUE)
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        claim_run(connection, run_id, owner="trainer-child0")
    [trainer] = listed(ledger)
    assert trainer.run == run_id


def test_a_heartbeat_is_written_when_it_is_due_or_processes_have_changed(ledger, heartbeat, monkeypatch):
    # given a worker whose processes are still loading their model
    assert heartbeat.tick(ledger, [])
    assert not heartbeat.tick(ledger, [])
    assert listed(ledger)[0].processes == 0

    # when a process is ready, then a heartbeat is written at once
    assert heartbeat.tick(ledger, [17])
    assert listed(ledger)[0].processes == 1
    assert not heartbeat.tick(ledger, [17])

    # and when the next heartbeat is due, it is written
    let_pass(ledger, 100)
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_SECONDS", 0.0)
    assert heartbeat.tick(ledger, [17])
    [worker] = listed(ledger)
    assert worker.seen_seconds < 50


def test_a_worker_that_stops_deletes_its_row(ledger, heartbeat):
    report(ledger, "another")
    heartbeat.tick(ledger, [17])
    heartbeat.end(ledger)
    assert [worker.name for worker in listed(ledger)] == ["another"]


def test_a_worker_without_a_heartbeat_for_a_day_is_forgotten(ledger, publisher):
    # given two workers that are gone, one of them for less than a day
    report(ledger, "long gone")
    let_pass(ledger, FORGOTTEN_SECONDS + 1)
    report(ledger, "gone")
    with ledger.transaction() as connection:
        connection.execute(
            table.update().where(table.c.name == "gone").values(seen_at=db_now(-FORGOTTEN_SECONDS / 2))
        )

    # when the reconciler runs, then only the recent one is listed
    Reconciler(ledger, publisher, holder="anna").tick()
    [worker] = listed(ledger)
    assert (worker.name, worker.alive) == ("gone", False)


def test_a_process_of_the_same_name_is_another_worker(ledger):
    # In a container the main process has the same name after each restart.
    report(ledger, "host/1")
    with ledger.transaction() as connection:
        row = WorkerRow("host/1", "host", RETRAIN_QUEUE, ["a", "b"], "9")
        report_worker(connection, row, up_seconds=0)
    [worker] = listed(ledger)
    assert (worker.queue, worker.processes, worker.version) == (RETRAIN_QUEUE, 2, "9")


def test_deaths_are_counted_once_even_if_the_ledger_was_away(ledger, heartbeat, monkeypatch):
    # given a ledger that cannot be reached when processes die
    def fail(*_: object, **__: object) -> None:
        raise Unavailable("The ledger cannot be reached.")

    with monkeypatch.context() as patch:
        patch.setattr(heartbeat_module, "report_worker", fail)
        with pytest.raises(Unavailable):
            heartbeat.tick(ledger, [], [-9, -9])
    # when it is back, then they are counted with those that died meanwhile
    heartbeat.tick(ledger, [], [-11])
    heartbeat.tick(ledger, [17])
    with ledger.reading() as connection:
        counted = totals(connection)
    assert counted == {("child_deaths", "SIGKILL"): 2, ("child_deaths", "SIGSEGV"): 1}


def test_a_worker_whose_processes_keep_dying_is_not_ready_and_says_why(ledger, settings, heartbeat):
    heartbeat.tick(ledger, [17], [-11] * MANY_DEATHS)
    assert "keep dying, the latest of SIGSEGV" in answer(settings, Part.WORKER, ready=False)
    assert listed(ledger)[0].problem is not None


def test_a_worker_reports_the_disks_that_it_sees(ledger, settings, heartbeat):
    Path(settings.store).mkdir(parents=True, exist_ok=True)
    heartbeat.tick(ledger, [17])
    with ledger.reading() as connection:
        found = {disk.name: disk for disk in list_disks(connection)}
    assert set(found) == ({"store", "ledger"} if ledger.is_sqlite else {"store"})
    assert found["store"].total_bytes == shutil.disk_usage(settings.store).total

    # a sender of webhooks may have another disk at the store's path
    assert reported_disks(settings, WEBHOOK_QUEUE)["store"] is None

    # and an old report is not shown
    with ledger.transaction() as connection:
        connection.execute(disks.update().values(seen_at=db_now(-STALE_SECONDS - 1)))
    with ledger.reading() as connection:
        assert list_disks(connection) == []


# ---- health -------------------------------------------------------------------------------------------


def test_a_worker_is_ready_while_it_has_a_recent_heartbeat_and_a_process(ledger, settings, short_folder):
    # given no worker, then one whose processes are loading, then a ready one, then one that is gone
    assert "no worker on this host" in answer(settings, Part.WORKER, ready=False)
    report(ledger, "host/1", children=0)
    assert "without a process" in answer(settings, Part.WORKER, ready=False)
    report(ledger, "host/1", children=2)
    assert "with 2 processes" in answer(settings, Part.WORKER, ready=True)
    # and with a store that cannot be written, or without a broker, it is not ready
    (short_folder / "file").touch()
    damaged = settings.model_copy(update={"store_url": str(short_folder / "file")})
    assert "the store cannot be used" in answer(damaged, Part.WORKER, ready=False)
    assert "the broker does not answer" in answer(
        without_broker(settings, short_folder), Part.WORKER, ready=False
    )
    let_pass(ledger, GONE_SECONDS + 1)
    assert "31 s ago, and not since" in answer(settings, Part.WORKER, ready=False)


def test_a_worker_of_another_host_or_queue_makes_nobody_ready(ledger, settings):
    # given a trainer on this host, and a worker on another
    report(ledger, "host/1", queue=RETRAIN_QUEUE)
    with ledger.transaction() as connection:
        there = WorkerRow("there/1", "there", CLASSIFY_QUEUE, ["there/2"], "0")
        report_worker(connection, there, up_seconds=1)

    # then this host's trainer is ready, and its worker is not
    answer(settings, Part.TRAINER, ready=True)
    answer(settings, Part.WORKER, ready=False)


def test_a_worker_that_was_replaced_is_ready_when_the_new_one_is(ledger, settings):
    report(ledger, "host/1")
    let_pass(ledger, 20)
    report(ledger, "host/2", children=0)
    answer(settings, Part.WORKER, ready=False)
    report(ledger, "host/2", children=3)
    assert "host/2" in answer(settings, Part.WORKER, ready=True)


def test_a_producer_is_ready_if_ledger_and_broker_answer(ledger, settings, short_folder):
    part = Part.PRODUCER
    assert answer(settings, part, ready=True) == "ledger and broker answer"

    # without a broker, it is not ready
    assert "the broker does not answer" in answer(without_broker(settings, short_folder), part, ready=False)

    # nor with a ledger of an older version
    of_version(ledger, "0000")
    assert "0000" in answer(settings, part, ready=False)


def without_broker(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(update={"broker_url": f"redis+socket://{folder}/nobody.sock"})


def of_version(ledger, number):
    with ledger.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :number"), {"number": number})


def test_a_worker_is_ready_with_a_compatible_newer_ledger_and_not_with_an_older_one(ledger, settings):
    # given a worker, and a ledger that the next version has migrated
    report(ledger, "host/1")
    of_version(ledger, "9999")
    # then it is still ready, because the new version's workers may not be running yet
    answer(settings, Part.WORKER, ready=True)
    # and with an older ledger it is not
    of_version(ledger, "0000")
    assert "0000" in answer(settings, Part.WORKER, ready=False)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_health_check_makes_no_ledger(settings, short_folder):
    nobodys = short_folder / "nobodys" / "ledger.sqlite3"
    away = settings.model_copy(update={"ledger_url": f"sqlite:///{nobodys}"})
    answer(away, Part.PRODUCER, ready=False)
    assert not nobodys.parent.exists()


# ---- liveness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_worker_is_alive_while_its_main_loop_runs_whatever_it_can_reach(
    settings: Settings, ledger: Ledger, home: Home, tmp_path: Path
) -> None:
    def is_alive() -> bool:
        return liveness(settings, Part.WEBHOOKS).ready

    def make_old() -> None:
        long_ago = time.time() - ALIVE_SECONDS - 1
        os.utime(settings.alive_file(WEBHOOK_QUEUE), (long_ago, long_ago))

    # Given a worker that has started
    assert not is_alive()
    with home.started("worker", "--webhooks", log=tmp_path / "log") as worker:
        until(is_alive, "its main loop has run")
        assert home.ok("ready", "webhooks", "--alive").startswith("alive: its main loop ran ")
        # When it cannot write to the ledger, Then its main loop still runs
        with ledger.transaction():
            make_old()
            until(is_alive, "its main loop has run without the ledger", seconds=30)
        # When its main process hangs, Then it is not alive
        worker.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
            make_old()
            hangs = home.run("ready", "webhooks", "--alive")
            assert (hangs.returncode, hangs.stdout[:10]) == (1, "not alive:")
        finally:
            worker.send_signal(signal.SIGCONT)
        until(is_alive, "its main loop runs again")


def answer(settings: Settings, part: Part, *, ready: bool) -> str:
    found = readiness(settings, part)
    assert found.ready == ready, found.reason
    assert "\n" not in found.reason
    return found.reason
