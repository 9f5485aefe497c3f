"""A purge removes what is old and nothing else; it can be killed at any point and run again."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import ids
from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs import queries as progress
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.queries import job_status, stream_predictions
from jobs.ledger.maintenance import delete_job
from jobs.schema import JOB_PLACES, ChunkState, JobState, chunks, corrections, db_now, jobs, metadata
from jobs.settings import Settings
from jobs.storage.payloads import payload_key
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.client.purging import Purge, Purged
from labelmill.commands import predictions as command
from labelmill.commands.purge import MAX_DAYS
from tests.conftest import Job
from tests.ledger_probes import cancel, rows_of, status_of
from tests.programs import run_python
from tests.threads import at_once

DAY = 24 * 3600

PurgeAll = Callable[..., Purged]


@pytest.fixture
def purge(ledger, store) -> PurgeAll:
    """Return a function: `purge(payloads=7, jobs=30)` runs one purge and returns what it has removed."""

    def purge(
        *,
        payloads: float | None = None,
        jobs: float | None = None,
        job: str | None = None,
        dry_run: bool = False,
        on_progress: Callable[[Purged], None] = lambda _purged: None,
    ) -> Purged:
        one = Purge(ledger, store, dry_run=dry_run, on_progress=on_progress)
        if jobs is not None:
            one.whole_jobs(days=jobs)
        if payloads is not None:
            one.payloads(days=payloads)
        if job is not None:
            one.one_job(job)
        else:
            one.strays()
        return one.purged

    return purge


def finish(worker, job: Job) -> None:
    for chunk in job.chunks:
        worker.work(chunk)


def finished_ago(ledger: Ledger, job: Job, days: float) -> None:
    with ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(finished_at=db_now(-days * DAY)))


@pytest.fixture
def finished(ledger, submitted, worker) -> Callable[..., Job]:
    """Return a function: `finished(7, days=40)` submits a job of seven images that finished that long ago."""

    def finished(images: int, *, days: float = 0, **options: str) -> Job:
        job: Job = submitted(images, **options)
        finish(worker, job)
        finished_ago(ledger, job, days)
        return job

    return finished


def stray_folder(store: Store, age_days: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """Store payloads without a job, as a producer leaves them that is killed before its first row."""
    now = ids.time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(ids.time, "time_ns", lambda: now - int(age_days * DAY * 1e9))
        job_id = new_id()
    store.put(payload_key(job_id, new_id()), b"payload")
    return job_id


# ---- payloads -----------------------------------------------------------------------------------------


def test_payloads_of_jobs_that_finished_long_ago_are_removed_and_predictions_stay(
    ledger, store, submitted, worker, purge
):
    # Given three jobs that ended eight days ago, one that ended six days ago, and one that is running
    old = [submitted(4) for _ in range(3)]
    finish(worker, old[0])
    cancel(ledger, old[1])
    with ledger.transaction() as connection:
        end_job(connection, old[2].id, JobState.FAILED, error="its model is gone")
    young, running = submitted(4), submitted(4)
    finish(worker, young)
    for job in old:
        finished_ago(ledger, job, 8)
    finished_ago(ledger, young, 6)

    # When payloads older than a week are purged
    purged = purge(payloads=7)

    # Then those of the three jobs are removed, and nothing else
    assert sorted(store.folders("payloads")) == sorted([young.id, running.id])
    assert (purged.payloads, purged.jobs, purged.strays, purged.in_work) == (3, 0, 0, [])
    assert purged.bytes > 3 * 4 * len(b"pixels")
    assert rows_of(ledger, old[0]) == (1, 2, 4)
    assert all(status_of(ledger, job).purged_at is not None for job in old)
    assert all(status_of(ledger, job).purged_at is None for job in (young, running))

    # And the running job can still be finished
    finish(worker, running)
    assert status_of(ledger, running).state == JobState.DONE

    # And a second purge finds nothing
    assert purge(payloads=7) == Purged()


def test_a_job_that_never_finished_is_kept_however_old_it_is(ledger, store, submitted, make_job, purge):
    # Given a job that has been running for a year, and one that is still being submitted
    waiting, receiving = submitted(4), make_job([2], sealed=False)
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(created_at=db_now(-365 * DAY)))

    # When everything is purged, Then both are complete
    assert purge(payloads=0, jobs=0) == Purged()
    assert store.folders("payloads") == [waiting.id]
    assert rows_of(ledger, receiving) == (1, 1, 0)


# ---- whole jobs ---------------------------------------------------------------------------------------


def test_one_job_is_removed_and_no_other(ledger, store, submitted, finished, purge, monkeypatch):
    # Given a job with a key that has just finished, a much older one, and stray payloads
    older, mine = finished(4, days=40), finished(7, key="mine")
    stray = stray_folder(store, 2, monkeypatch)

    # When that job is purged, Then a dry run removes nothing, and the real one only that job
    looked = purge(job=mine.id, dry_run=True)
    assert rows_of(ledger, mine) == (1, 3, 7)
    assert purge(job=mine.id) == looked
    assert (looked.jobs, looked.payloads, looked.predictions, looked.strays) == (1, 1, 7, 0)
    assert rows_of(ledger, mine) == (0, 0, 0)
    assert rows_of(ledger, older) == (1, 2, 4)
    assert sorted(store.folders("payloads")) == sorted([older.id, stray])
    assert submitted(7, key="mine").id != mine.id

    # And the job cannot be found any more
    with pytest.raises(NotFound):
        purge(job=mine.id)


def test_one_job_that_somebody_is_at_is_refused(ledger, store, submitted, worker, purge):
    # Given a running job, When it is purged, Then that is refused, also in a dry run
    job = submitted(3)
    for dry_run in (True, False):
        with pytest.raises(Conflict, match=f"it is running: stop it first, `labelmill cancel {job.id}`"):
            purge(job=job.id, dry_run=dry_run)

    # When it is cancelled but a worker still has a chunk, Then that is the reason for refusing
    claim = worker.must_claim(job.chunks[0])
    cancel(ledger, job)
    for dry_run in (True, False):
        with pytest.raises(Conflict, match="A worker still has images"):
            purge(job=job.id, dry_run=dry_run)
    assert rows_of(ledger, job) == (1, 1, 0)
    assert store.folders("payloads") == [job.id]

    # When the worker has finished, Then the job can be purged
    worker.finish(claim)
    assert purge(job=job.id).jobs == 1


def test_one_job_that_somebody_else_removes_at_the_same_moment_is_gone(finished, purge, monkeypatch):
    # Given a finished job that somebody else purges just after this purge has looked at it
    job = finished(3)

    def overtaken(connection, job_id):
        monkeypatch.undo()
        found = job_status(connection, job_id)
        assert purge(job=job_id).jobs == 1
        return found

    monkeypatch.setattr("labelmill.client.purging.job_status", overtaken)

    # When it is purged, Then the error says that there is no such job, not that a worker has it
    with pytest.raises(NotFound):
        purge(job=job.id)


@pytest.fixture
def running(submitted) -> Job:
    """A job that has not finished: no partition can be emptied, so a purge deletes predictions in parts."""
    job: Job = submitted(1)
    return job


@pytest.mark.usefixtures("running")
def test_as_many_days_as_may_be_said_are_a_time_that_the_ledger_can_hold(ledger, finished, purge):
    # Given jobs that finished just before and just after the oldest allowed limit
    old, young = finished(4, days=MAX_DAYS + 1), finished(4, days=MAX_DAYS - 1)

    # When jobs older than that are purged, Then only the older one is gone
    assert purge(payloads=MAX_DAYS, jobs=MAX_DAYS).jobs == 1
    assert rows_of(ledger, old) == (0, 0, 0)
    assert rows_of(ledger, young) == (1, 2, 4)


def test_a_purge_knows_each_table_with_rows_of_a_job():
    of_jobs = [table for table in metadata.sorted_tables if "job_id" in table.c]
    cascading = [
        table for table in of_jobs if any(key.ondelete == "CASCADE" for key in table.c.job_id.foreign_keys)
    ]
    emptied = {place.table for place in JOB_PLACES}
    assert emptied.union(cascading, [corrections]) == set(of_jobs)


def test_only_a_marked_job_is_deleted(ledger, finished):
    job = finished(4)
    with ledger.transaction() as connection:
        assert not delete_job(connection, job.id)
    assert rows_of(ledger, job) == (1, 2, 4)


# ---- a dry run ----------------------------------------------------------------------------------------


def test_a_dry_run_counts_the_same_and_removes_nothing(
    ledger, store, submitted, finished, worker, purge, monkeypatch
):
    # Given jobs to be removed wholly or in part, one that a worker has, and a stray folder
    old, middle, held = finished(7, days=40), finished(4, days=10), submitted(3)
    claim = worker.must_claim(held.chunks[0])
    cancel(ledger, held)
    finished_ago(ledger, held, 40)
    stray_folder(store, 2, monkeypatch)
    before = sorted(store.folders("payloads"))

    # When it is a dry run, Then nothing changes
    looked = purge(payloads=7, jobs=30, dry_run=True)
    assert sorted(store.folders("payloads")) == before
    assert rows_of(ledger, old) == (1, 3, 7)
    assert status_of(ledger, middle).purged_at is None

    # And the real purge removes just what the dry run counted
    assert purge(payloads=7, jobs=30) == looked
    assert (looked.jobs, looked.payloads, looked.strays, looked.predictions) == (1, 2, 1, 7)
    assert looked.in_work == [held.id]

    # And the job that a worker has is kept until that has finished
    assert store.folders("payloads") == [held.id]
    assert status_of(ledger, held).purged_at is None
    worker.finish(claim)
    assert purge(payloads=7, jobs=30).jobs == 1
    assert rows_of(ledger, held) == (0, 0, 0)


# ---- leftovers ----------------------------------------------------------------------------------------


def test_payloads_that_no_job_names_are_removed_after_a_day(store, purge, monkeypatch):
    # Given payloads of producers that were killed before their first row, and a foreign folder
    old = stray_folder(store, 1.1, monkeypatch)
    young = stray_folder(store, 0.9, monkeypatch)
    store.put("payloads/somebody-elses/file", b"x")
    store.put(f"models/{old}/x.keras", b"x")

    # When a purge runs, Then only the old payloads are removed
    purged = purge()
    assert (purged.strays, purged.bytes) == (1, len(b"payload"))
    assert sorted(store.folders("payloads")) == sorted([young, "somebody-elses"])
    assert store.get(f"models/{old}/x.keras") == b"x"


# ---- while workers run --------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_claim_at_the_last_moment_keeps_its_job(
    ledger, store, submitted, worker, purge, wait_until_blocked
):
    # Given an uncommitted claim, and a cancellation that skips the claimed chunk
    job = submitted(3)
    with ThreadPoolExecutor(1) as pool:
        with worker.ledger.transaction() as connection:
            connection.execute(
                chunks.update()
                .where(chunks.c.job_id == job.id)
                .values(state=ChunkState.CLAIMED, token=new_id(), lease_until=db_now(60))
            )
            cancel(ledger, job)
            finished_ago(ledger, job, 1)

            # When it is purged before the claim is committed
            purging = pool.submit(purge, jobs=0)
            wait_until_blocked()

        # Then the purge waits for the claim, and keeps the job
        assert purging.result(30).in_work == [job.id]
    assert store.folders("payloads") == [job.id]


def test_two_purges_at_once_remove_everything_once(ledger, ledger_url, store, finished):
    # Given ten old jobs
    old = [finished(4, days=2) for _ in range(10)]

    def purge_all(_number: int) -> Purged:
        with contextlib.closing(Ledger(ledger_url)) as own:
            one = Purge(own, store, dry_run=False, on_progress=lambda _purged: None)
            one.whole_jobs(days=1)
            one.strays()
            return one.purged

    # When two purges run at once, Then everything is gone, and each prediction was deleted once
    both = at_once(purge_all, range(2))
    assert sum(purged.predictions for purged in both) == 40
    assert all(rows_of(ledger, job) == (0, 0, 0) for job in old)
    assert store.folders("payloads") == []


# ---- while somebody reads predictions -----------------------------------------------------------------


@pytest.fixture
def read_to_the_end(ledger, finished, monkeypatch):
    """Return a function that reads ten predictions four at a time and returns their indices.

    `read_to_the_end(meanwhile, wanted, limit)` calls `meanwhile` after the first prediction.
    """

    def read_to_the_end(
        meanwhile: Callable[[], object],
        wanted: Filter,
        *,
        limit: int | None = None,
    ) -> list[int]:
        monkeypatch.setattr(progress, "PAGE_ROWS", 4)
        job = finished(10, days=40)
        stream = stream_predictions(ledger, job.id, wanted, limit=limit)
        first = next(stream)
        meanwhile()
        return [first.index, *(prediction.index for prediction in stream)]

    return read_to_the_end


@pytest.mark.parametrize("limit", [None, 6, 8])
@pytest.mark.parametrize("wanted", [Filter(), Filter(label="7", name="*.png")], ids=["all", "some"])
def test_who_reads_a_job_that_is_purged_as_a_whole_is_told(purge, read_to_the_end, wanted, limit):
    with pytest.raises(Conflict, match=r"was purged.* some are missing"):
        read_to_the_end(lambda: purge(jobs=30), wanted, limit=limit)


def test_who_reads_a_job_whose_payloads_are_purged_gets_all_of_it(purge, read_to_the_end):
    assert read_to_the_end(lambda: purge(payloads=7), Filter()) == list(range(10))


def test_who_has_all_they_asked_for_does_not_care(purge, read_to_the_end):
    # The limit is four, and the first page has four predictions
    assert read_to_the_end(lambda: purge(jobs=30), Filter(), limit=4) == list(range(4))


@pytest.mark.usefixtures("running")
def test_an_export_of_a_job_that_is_half_gone_fails(settings, finished, monkeypatch, capsys, tmp_path):
    # Given a purge that was killed after it deleted a part of a job's predictions
    job = finished(10, days=40)
    assert was_killed(settings, 6)

    # And a file with an earlier export
    output = tmp_path / "job.csv"
    output.write_text("what was exported before")

    # When the rest is exported, Then the command reports the purge and fails
    monkeypatch.setattr(command, "open_client", lambda: Client(settings))
    for into in (None, str(output)):
        with pytest.raises(SystemExit) as end:
            command.predictions(job.id, None, None, form=command.Format.CSV, limit=None, output=into)
        assert end.value.code == 2
        assert f"{job.id} was purged" in " ".join(capsys.readouterr().err.split())

    # And the file is unchanged
    assert output.read_text() == "what was exported before"


# ---- a purge that is killed ---------------------------------------------------------------------------

#: Purge in a process that kills itself after so many steps.
KILLS_ITSELF = """
import itertools, os, signal, sys
from jobs.ledger import Ledger, maintenance
from jobs.storage.store import Store
from labelmill.client.purging import Purge

ledger_url, store_url, kill_after = sys.argv[1], sys.argv[2], int(sys.argv[3])
maintenance.DELETE_ROWS = 4
steps = itertools.count(1)

def step(_purged=None):
    if next(steps) == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

class SteppingStore(Store):
    def remove_folder(self, key):
        step()
        super().remove_folder(key)

one = Purge(Ledger(ledger_url), SteppingStore(store_url), dry_run=False, on_progress=step)
one.whole_jobs(days=30)
one.payloads(days=7)
one.strays()
"""


def was_killed(settings: Settings, kill_after: int) -> bool:
    """Purge in a process that is killed after so many steps; return False if it came to its end before."""
    done = run_python(KILLS_ITSELF, str(settings.ledger), settings.store, str(kill_after), check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return bool(done.returncode)


def names_a_missing_payload(ledger: Ledger, store: Store, some: Sequence[Job]) -> list[str]:
    """Return the payloads that are missing although their jobs are not marked as purged."""
    missing = []
    for job in some:
        with contextlib.suppress(NotFound):
            if status_of(ledger, job).purged_at is None:
                for chunk in job.chunks:
                    try:
                        store.get(chunk.payload)
                    except FileNotFoundError:
                        missing.append(chunk.payload)
    return missing


@pytest.mark.parametrize("kill_after", range(1, 12))
def test_a_purge_that_is_killed_can_be_run_again(ledger, store, settings, finished, purge, kill_after):
    # Given a job to be removed whole, one whose payloads are to be removed, and one to be kept
    whole, payloads_only, kept = finished(10, days=40), finished(4, days=10), finished(4, days=1)

    # When a purge is killed at one of its steps
    assert was_killed(settings, kill_after)

    # Then no row names a missing payload, and the job to be kept is complete
    assert names_a_missing_payload(ledger, store, [whole, payloads_only, kept]) == []
    assert rows_of(ledger, kept) == (1, 2, 4)
    assert rows_of(ledger, payloads_only) == (1, 2, 4)

    # And a second purge leaves what one purge would have left
    purge(payloads=7, jobs=30)
    assert rows_of(ledger, whole) == (0, 0, 0)
    assert store.folders("payloads") == [kept.id]
    assert names_a_missing_payload(ledger, store, [payloads_only, kept]) == []
    assert purge(payloads=7, jobs=30) == Purged()


def test_the_steps_at_which_a_purge_was_killed_are_all_there_are(settings, finished):
    for days in (40, 10, 1):
        finished(10 if days == 40 else 4, days=days)
    assert not was_killed(settings, 12)
