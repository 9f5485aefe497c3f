"""Beat purges what is older than the settings say, once a day."""

from __future__ import annotations

import logging
import os

import pytest
import sqlalchemy as sa

from jobs.errors import NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.files import FILES, file_key
from jobs.ledger.jobs.queries import job_status
from jobs.schema import db_now, jobs, purges
from jobs.settings import Settings
from jobs.storage.store import Store
from tests.conftest import JobMaker, WorkerMaker
from tests.console import until
from worker import retention
from worker.retention import Retention


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings. The purge, a process of its own, reads them from the environment."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retention, "_START_SECONDS", 0.0)
    return settings


@pytest.fixture
def kept_for_a_day(settings: Settings) -> Settings:
    """Return settings that keep jobs for a day."""
    return settings.model_copy(update={"keep_jobs_days": 1.0})


def test_two_beats_purge_once_a_day(
    ledger: Ledger,
    kept_for_a_day: Settings,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    # Given a job that ended two days ago, one that ended now, and two beats
    old, new = make_job([1]), make_job([1])
    for job in (old, new):
        new_worker("anna").work(job.chunks[0])
    with ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == old.id).values(finished_at=db_now(-2 * 86_400)))
    beats = []
    for name in ("host/1", "host/2"):
        monkeypatch.setattr(retention, "owner_name", lambda _pid, name=name: name)
        beats.append(Retention(kept_for_a_day))

    # When both tick until a purge has ended
    def tick() -> bool:
        for beat in beats:
            beat.tick(ledger)
        return "purge, exit code 0" in caplog.text

    until(tick, "the purge has ended", seconds=60)
    for _ in range(3):
        tick()

    # Then there was one purge, it is recorded, and only the old job is gone
    with ledger.reading() as connection:
        [record] = connection.execute(sa.select(purges)).all()
        assert job_status(connection, new.id).finished
        with pytest.raises(NotFound):
            job_status(connection, old.id)
    assert record.options == {"job": None, "payloads": None, "jobs": 1.0}
    assert (record.removed["jobs"], record.removed["predictions"]) == (1, 1)
    assert caplog.text.count("labelmill purge --jobs=1") == 1


def test_a_purge_that_fails_is_logged_and_tried_again(
    ledger: Ledger,
    kept_for_a_day: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a purge that cannot reach its store
    monkeypatch.setenv("LABELMILL_STORE_URL", "nonsense://store")
    monkeypatch.setattr(retention, "_RETRY_SECONDS", 0.0)
    beat = Retention(kept_for_a_day)

    # When beat ticks, then it logs why, and tries again when the pause is over
    def tick(times: int) -> bool:
        beat.tick(ledger)
        return caplog.text.count("nonsense") >= times

    until(lambda: tick(2), "it has failed twice", seconds=60)
    assert "ERROR" in caplog.text
    assert "\0" not in caplog.text


def test_by_default_only_what_no_job_needs_is_purged(
    ledger: Ledger,
    settings: Settings,
    store: Store,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a job that ended a year ago, and two files without a row: an old one, and one that is uploaded now
    job = make_job([1])
    new_worker("anna").work(job.chunks[0])
    with ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(finished_at=db_now(-366 * 86_400)))
    old, new = file_key(new_id()), file_key(new_id())
    for key in (old, new):
        store.put(key, b"left by a killed server")
    os.utime(store.folder / old, (1_000_000_000, 1_000_000_000))

    # When beat starts, then it leaves the machine to the others for some minutes
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "_START_SECONDS", 300.0)
        Retention(settings).tick(ledger)
    assert "purge" not in caplog.text

    # And then it removes the old file, and nothing else
    beat = Retention(settings)

    def tick() -> bool:
        beat.tick(ledger)
        return "purge, exit code 0" in caplog.text

    until(tick, "the purge has ended", seconds=60)
    assert [file_key(name) for name in store.files(FILES)] == [new]
    with ledger.reading() as connection:
        [record] = connection.execute(sa.select(purges)).all()
        assert job_status(connection, job.id).purged_at is None
    assert record.options == {"job": None, "payloads": None, "jobs": None}
    assert record.removed["strays"] == 1
