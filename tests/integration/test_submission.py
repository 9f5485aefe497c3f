"""A job grows chunk by chunk while it is submitted, and a key belongs to one job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from jobs.errors import NotFound, Stopped
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.batches import add_batch, claim_intake
from jobs.ledger.jobs.control import end_job, pause_job
from jobs.ledger.jobs.submission import (
    ABANDONED_SECONDS,
    KeyHolder,
    NewChunk,
    add_chunk,
    find_key,
    open_job,
    seal_job,
    touch_job,
)
from jobs.options import DEFAULT_PROJECT
from jobs.schema import ChunkState, JobState, batches, chunks, db_now, jobs
from tests.conftest import Job
from tests.ledger_probes import age_heartbeat, status_of


def holder_of(ledger: Ledger, key: str) -> KeyHolder | None:
    with ledger.reading() as connection:
        return find_key(connection, DEFAULT_PROJECT, key)


def chunk(first: int, images: int) -> NewChunk:
    return NewChunk(new_id(), first, images, "payloads/x", "0" * 64)


def test_each_chunk_is_a_sign_of_life(ledger, make_job):
    # Given a producer without a heartbeat for long
    job = make_job([1], sealed=False, key="mine")
    age_heartbeat(ledger, job, 1000)
    assert not holder_of(ledger, "mine").receiving

    # When it adds a chunk, Then it counts as alive
    with ledger.transaction() as connection:
        add_chunk(connection, job.id, chunk(1, 1))
    assert holder_of(ledger, "mine").receiving


def touch(ledger: Ledger, job_id: str) -> bool:
    with ledger.transaction() as connection:
        return touch_job(connection, job_id)


@pytest.mark.parametrize("paused", [False, True])
def test_a_producer_can_give_a_sign_of_life_between_chunks(ledger, make_job, paused):
    # Given two producers without a heartbeat for long, with their jobs paused or not
    job, other = (make_job([1], sealed=False, key=key) for key in ("mine", "another's"))
    for one in (job, other):
        age_heartbeat(ledger, one, 1000)
        if paused:
            with ledger.transaction() as connection:
                assert pause_job(connection, one.id)

    # When one of them sends a heartbeat, Then it counts as alive, and its job has no more chunks
    assert touch(ledger, job.id)
    assert holder_of(ledger, "mine").receiving
    assert not holder_of(ledger, "another's").receiving
    assert status_of(ledger, job).total == 1


@pytest.mark.parametrize("end", ["sealed", "cancelled", "failed"])
def test_a_job_that_is_not_received_any_more_is_not_touched(ledger, make_job, end):
    # Given a job that was sealed or stopped long ago
    job = make_job([1], sealed=end == "sealed")
    if end != "sealed":
        with ledger.transaction() as connection:
            assert end_job(connection, job.id, JobState(end))
    age_heartbeat(ledger, job, 1000)
    with ledger.reading() as connection:
        before = connection.execute(sa.select(jobs).where(jobs.c.id == job.id)).one()

    # When its producer sends a heartbeat, Then that is refused
    assert not touch(ledger, job.id)
    assert not touch(ledger, new_id())
    with ledger.reading() as connection:
        assert connection.execute(sa.select(jobs).where(jobs.c.id == job.id)).one() == before


def test_nothing_is_added_to_a_sealed_job(ledger, make_job):
    job = make_job([1])
    with pytest.raises(Stopped, match=job.id), ledger.transaction() as connection:
        add_chunk(connection, job.id, chunk(1, 1))
    assert status_of(ledger, job).total == 1


def test_nothing_is_added_to_a_job_that_is_not_there(ledger):
    nobody = new_id()
    with pytest.raises(Stopped), ledger.transaction() as connection:
        add_chunk(connection, nobody, chunk(0, 1))
    with pytest.raises(NotFound):
        status_of(ledger, Job(nobody, []))


def test_keys_are_told_apart_to_the_letter(ledger, make_job):
    job = make_job([1], key="Mine ")
    assert holder_of(ledger, "Mine ").job_id == job.id
    for other in ("mine ", "Mine", "MINE ", "Mine _", "Mine%", ""):
        assert holder_of(ledger, other) is None


def test_who_holds_a_key_and_how_far_they_are(ledger, make_job, champion):
    # Given a key without a job
    assert holder_of(ledger, "mine") is None

    # When a job with this key is being submitted
    job = make_job([1], sealed=False, key="mine")
    assert holder_of(ledger, "mine") == KeyHolder(
        job.id, receiving=True, sealed=False, fingerprint=None, model_id=champion.id
    )

    # When the job is sealed
    with ledger.transaction() as connection:
        seal_job(connection, job.id, fingerprint="f" * 64)
    assert holder_of(ledger, "mine") == KeyHolder(
        job.id, receiving=False, sealed=True, fingerprint="f" * 64, model_id=champion.id
    )


def test_a_silent_producer_is_taken_for_dead_in_time_and_not_before(ledger, make_job, champion):
    job = make_job([1], sealed=False, key="mine")
    age_heartbeat(ledger, job, ABANDONED_SECONDS - 30)
    assert holder_of(ledger, "mine").receiving
    age_heartbeat(ledger, job, ABANDONED_SECONDS + 1)
    assert holder_of(ledger, "mine") == KeyHolder(
        job.id, receiving=False, sealed=False, fingerprint=None, model_id=champion.id
    )


def test_a_job_stopped_while_it_was_received_has_no_producer_any_more(ledger, make_job, champion):
    job = make_job([1], sealed=False, key="mine")
    with ledger.transaction() as connection:
        end_job(connection, job.id, JobState.CANCELLED)
    assert holder_of(ledger, "mine") == KeyHolder(
        job.id, receiving=False, sealed=False, fingerprint=None, model_id=champion.id
    )


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_times_are_utc_whatever_zone_the_database_lives_in(ledger, make_job, postgresql_server, ledger_url):
    # Given a database whose sessions use another time zone
    database = sa.make_url(ledger_url).database
    postgresql_server.execute(f"ALTER DATABASE {database} SET timezone = 'Asia/Kathmandu'")
    ledger.engine.dispose()

    # When a job is stored, Then its times are in UTC
    status = status_of(ledger, make_job())
    assert status.created_at.utcoffset() == timedelta(0)
    assert abs(status.created_at - datetime.now(UTC)) < timedelta(seconds=30)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_chunk_that_comes_while_its_job_is_stopped_is_dropped_too(ledger, make_job, wait_until_blocked):
    # Given a producer that has added a chunk and not committed yet
    job = make_job([1], sealed=False)

    def cancel():
        with ledger.transaction() as connection:
            return end_job(connection, job.id, JobState.CANCELLED)

    with ThreadPoolExecutor(1) as pool:
        with ledger.transaction() as connection:
            add_chunk(connection, job.id, chunk(1, 1))

            # When somebody cancels the job, and waits for the producer's commit
            cancelled = pool.submit(cancel)
            wait_until_blocked()
        assert cancelled.result(30)

    # Then no chunk of the cancelled job is pending
    with ledger.reading() as connection:
        states = set(connection.scalars(sa.select(chunks.c.state).where(chunks.c.job_id == job.id)))
    assert states == {ChunkState.DROPPED}


def test_an_urgent_batch_is_taken_in_before_older_ones(ledger, champion):
    # Given batches of several priorities, oldest first: without one, it is 0
    wanted = {}
    for age, priority in ((50, -100), (40, None), (30, 9), (20, 100), (10, 9)):
        job_id = new_id()
        request = {} if priority is None else {"priority": priority}
        with ledger.transaction() as connection:
            open_job(connection, job_id, model_id=champion.id)
            add_batch(connection, job_id, request=request, file_id=None)
            created = batches.update().where(batches.c.job_id == job_id)
            connection.execute(created.values(created_at=db_now(-age)))
        wanted[job_id] = (priority, age)

    # When they are claimed one by one
    claimed = []
    with ledger.transaction() as connection:
        while (intake := claim_intake(connection, owner="test")) is not None:
            claimed.append(wanted[intake.job_id])

    # Then the highest priority comes first, and among equals the oldest
    assert claimed == [(100, 20), (9, 30), (9, 10), (None, 40), (-100, 50)]
