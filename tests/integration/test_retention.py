"""Beat purges what is older than the settings say, once a day."""

from __future__ import annotations

import logging

import pytest
import sqlalchemy as sa

from jobs.errors import NotFound
from jobs.ledger import Ledger
from jobs.ledger.jobs.queries import job_status
from jobs.schema import db_now, jobs, purges
from jobs.settings import Settings
from tests.conftest import JobMaker, WorkerMaker
from tests.console import until
from worker import retention
from worker.retention import Retention


@pytest.fixture
def kept_for_a_day(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings that keep jobs for a day. The purge, a process of its own, reads the environment."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
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


def test_nothing_is_purged_by_default(ledger: Ledger, settings: Settings) -> None:
    beat = Retention(settings)
    beat.tick(ledger)
    with ledger.reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM locks WHERE name = 'daily purge'")) == 0
