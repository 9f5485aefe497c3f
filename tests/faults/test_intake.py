"""Taking in a batch is killed at every step: the next process continues, and each image is taken once."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.batches import add_batch
from jobs.ledger.files import add_file, file_key
from jobs.ledger.submission import open_job
from jobs.model import Model
from jobs.payloads import read_payload
from jobs.queue import Publisher
from jobs.schema import JobState, batches, chunks, db_now, jobs
from jobs.settings import Settings
from jobs.store import Store
from producer.intake import take_in_next
from tests.console import Home
from worker.reconcile import fail_abandoned_jobs

IMAGES = 100
CHUNK_IMAGES = 30

#: For each line on stdin: take in the next batch in a process that kills itself at a step.
KILLS_ITSELF = """
from jobs.ledger import Ledger
from jobs.queue import Publisher, make_app
from jobs.settings import Settings
from jobs.store import Store
from producer.intake import take_in_next
from tests.faults.steps import begin_steps, serve

def take_in(_line):
    settings = Settings.load()
    parts = Ledger(settings.ledger), Store(settings.store), Publisher(make_app(settings))
    begin_steps()
    take_in_next(*parts, settings, owner="killed")

serve(take_in)
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"chunk_images": CHUNK_IMAGES})


def submit_archive(ledger: Ledger, store: Store, archive: bytes, model: Model) -> str:
    """Commit a batch of this archive, as the API does; return its id."""
    job_id, file_id = new_id(), new_id()
    store.put(file_key(file_id), archive)
    with ledger.transaction() as connection:
        add_file(connection, file_id, name="images.zip", purpose="batch", size=len(archive), sha256="0" * 64)
        open_job(connection, job_id, model_id=model.id, key=None)
        add_batch(connection, job_id, request={}, file_id=file_id)
    return job_id


def names_of(ledger: Ledger, store: Store, job_id: str) -> list[str]:
    """Return the names of the job's images, in order of their indexes, which must be complete."""
    query = sa.select(chunks.c.first_index, chunks.c.images, chunks.c.payload, chunks.c.payload_sha256)
    names: list[str] = []
    with ledger.reading() as connection:
        for row in connection.execute(query.where(chunks.c.job_id == job_id).order_by(chunks.c.first_index)):
            assert row.first_index == len(names)
            names += read_payload(store, row.payload, row.payload_sha256).names
    return names


def test_an_intake_that_is_killed_at_any_step_is_continued(
    settings: Settings,
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    champion: Model,
    tmp_path: Path,
) -> None:
    # Given an archive
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for number in range(IMAGES):
            file.writestr(f"{number % 7}/{number:03}.png", f"pixels {number}")
        expected = file.namelist()
    archive = (tmp_path / "images.zip").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLS_ITSELF],
        env=Home(settings.home, settings.environment()).environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        killed = 0
        for _ in count():
            job_id = submit_archive(ledger, store, archive, champion)

            # When the process that takes in a batch of it is killed at the next step
            process.stdin.write("next\n")
            process.stdin.flush()
            outcome = process.stdout.readline().strip()

            # Then the reconciler lets the batch wait, and another process continues it when the lease is over
            with ledger.transaction() as connection:
                connection.execute(jobs.update().where(jobs.c.id == job_id).values(touched_at=db_now(-1000)))
                assert fail_abandoned_jobs(connection) == []
                connection.execute(batches.update().values(lease_until=db_now(-1)))
            while take_in_next(ledger, store, publisher, settings, owner="next"):
                pass
            assert names_of(ledger, store, job_id) == expected
            with ledger.reading() as connection:
                job = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
            assert (job.state, job.total) == (JobState.RUNNING, IMAGES)
            if outcome != "killed":
                assert outcome == "ended 0"
                break
            killed += 1
        process.stdin.close()
    # four chunks, each with a payload and a transaction, the claim, and the folder's first file
    assert killed > 30
