"""Taking in a batch is killed at every step: the next process continues, and each image is taken once."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.batches import add_batch
from jobs.ledger.api.files import add_file, file_key
from jobs.ledger.jobs.submission import open_job
from jobs.models.model import Model
from jobs.options import DEFAULT_PROJECT
from jobs.queue import Publisher
from jobs.schema import JobState, batches, chunks, db_now, jobs
from jobs.settings import Settings
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from tests.faults.steps import killed_at_each_step
from tests.intake import take_in_next
from worker.reconciler import fail_abandoned_jobs

IMAGES = 100
CHUNK_IMAGES = 30

#: For each line on stdin: take in the next batch in a process that kills itself at a step.
KILLS_ITSELF = """
from jobs.ledger import Ledger
from jobs.queue import Publisher, make_app
from jobs.settings import Settings
from jobs.storage.store import Store
from tests.intake import take_in_next
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


@dataclass(frozen=True)
class Source:
    """What a batch is created from, and the names of its images."""

    names: list[str]
    file: Path | None = None
    request: dict[str, Any] = field(default_factory=dict)

    def submit(self, ledger: Ledger, store: Store, model: Model) -> str:
        """Commit a batch of this source, as the API does; return its id."""
        job_id, file_id = new_id(), None if self.file is None else new_id()
        if self.file is not None:
            store.put(file_key(str(file_id)), self.file.read_bytes())
        with ledger.transaction() as connection:
            if self.file is not None:
                named = {"name": self.file.name, "purpose": "batch", "size": 1, "sha256": "0" * 64}
                add_file(connection, str(file_id), project=DEFAULT_PROJECT, **named)
            open_job(connection, job_id, model_id=model.id)
            add_batch(connection, job_id, request=self.request, file_id=file_id)
        return job_id


def make_source(kind: str, folder: Path) -> Source:
    """Make a source of IMAGES images."""
    names = [f"{number % 7}/{number:03}.png" for number in range(IMAGES)]
    photos = folder / "photos"
    if kind == "archive":
        with zipfile.ZipFile(folder / "images.zip", "w") as file:
            for name in names:
                file.writestr(name, f"pixels {name}")
        return Source(names, folder / "images.zip")
    for name in names:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_text(f"pixels {name}")
    if kind == "prefix":
        return Source(sorted(names), request={"source_url": f"file://{photos}/"})
    manifest = folder / "images.csv"
    rows = "".join(f"{name},{photos / name}\n" for name in names)
    manifest.write_text(f"custom_id,path\n{rows}")
    return Source(names, manifest, {"by_reference": True})


def names_of(ledger: Ledger, store: Store, job_id: str) -> list[str]:
    """Return the names of the job's images, in order of their indexes, which must be complete."""
    query = sa.select(chunks.c.first_index, chunks.c.images, chunks.c.payload, chunks.c.payload_digest)
    names: list[str] = []
    with ledger.reading() as connection:
        for row in connection.execute(query.where(chunks.c.job_id == job_id).order_by(chunks.c.first_index)):
            assert row.first_index == len(names)
            names += read_payload(store, row.payload, row.payload_digest).names
    return names


@pytest.mark.parametrize(
    ("kind", "ledger_url"),
    # how a source is read does not depend on the database
    [("archive", "sqlite"), ("archive", "postgresql"), ("manifest", "sqlite"), ("prefix", "sqlite")],
    indirect=["ledger_url"],
)
def test_an_intake_that_is_killed_at_any_step_is_continued(
    kind: str,
    settings: Settings,
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    champion: Model,
    tmp_path: Path,
) -> None:
    # Given a source
    source = make_source(kind, tmp_path)
    settings = settings.model_copy(update={"reference_roots": (str(tmp_path),)})
    with killed_at_each_step(KILLS_ITSELF, settings=settings) as take_in:
        killed = 0
        for _ in count():
            job_id = source.submit(ledger, store, champion)

            # When the process that takes in a batch of it is killed at the next step
            was_killed = take_in("next")

            # Then the reconciler lets the batch wait, and another process continues it when the lease is over
            with ledger.transaction() as connection:
                connection.execute(jobs.update().where(jobs.c.id == job_id).values(touched_at=db_now(-1000)))
                assert fail_abandoned_jobs(connection) == []
                connection.execute(batches.update().values(lease_until=db_now(-1)))
            while take_in_next(ledger, store, publisher, settings, owner="next"):
                pass
            assert names_of(ledger, store, job_id) == source.names
            with ledger.reading() as connection:
                job = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
            assert (job.state, job.total) == (JobState.RUNNING, IMAGES)
            if not was_killed:
                break
            killed += 1
    # four chunks, each with a payload and a transaction, the claim, and the folder's first file
    assert killed > 30


def test_a_folder_that_changes_while_it_is_taken_in_fails_the_batch(
    settings: Settings,
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    champion: Model,
    tmp_path: Path,
) -> None:
    # Given a batch whose intake was interrupted after the first chunk
    source = make_source("prefix", tmp_path)
    settings = settings.model_copy(update={"reference_roots": (str(tmp_path),)})
    job_id = source.submit(ledger, store, champion)
    assert take_in_next(ledger, store, publisher, settings, owner="interrupted", max_chunks=1)
    taken = names_of(ledger, store, job_id)
    assert CHUNK_IMAGES <= len(taken) < IMAGES

    # When a file appears among those that were taken in, and the next process continues
    (tmp_path / "photos" / "0" / "0000.png").write_text("new")
    assert take_in_next(ledger, store, publisher, settings, owner="next")

    # Then the batch fails, instead of taking one image twice and another one never
    with ledger.reading() as connection:
        job = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
    assert job.state == JobState.FAILED
    assert "were added or removed" in job.error
    assert names_of(ledger, store, job_id) == taken
