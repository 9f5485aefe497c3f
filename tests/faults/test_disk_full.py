"""No room left: a producer is told and leaves nothing behind, a worker waits for it."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.ledger.disks import read_disk, report_disk
from jobs.schema import chunks
from jobs.settings import Settings
from labelmill import Client
from labelmill.operations.readiness import Part
from tests.console import LABELMILL, Home, until
from tests.faults.checker import Verdict, chunk_rows
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.servers import FaultyPostgresql
from tests.faults.signs import Signs, missing_signs, scrape
from tests.faults.trials import Matrix
from tests.small_disk import SmallDisk

#: How long the ledger's disk is full: several leases, enough for dozens of attempts if workers kept claiming.
FULL_SECONDS = 15.0

#: What the sources say of it (docs/how-to/troubleshoot.md).
FULL = Signs(
    health="The ledger's disk is full",
    doctor="the database's disk is full",
    metrics=r'^labelmill_disk_free_bytes\{disk="ledger"\} \d{1,5}\.0$',
    firing="LabelmillDiskFillsUp",
    log="claims nothing until the ledger's disk has room",
)


@pytest.mark.parametrize(
    ("command", "room"),
    [
        *(("submit", room) for room in (40_000, 300_000, 1_000_000)),
        *(("datasets add pets", room) for room in (20_000, 120_000)),
    ],
)
def test_a_producer_without_room_says_so_and_leaves_nothing(
    new_home: Home, tmp_path: Path, matrix: Matrix, command: str, room: int
) -> None:
    with matrix.trials(f"disk full during {command}", "I1", short=1, long=1) as trials:
        # given a folder of images, and a limit on what a file may grow to
        for picture in pictures(600):
            (tmp_path / "images" / picture.answer).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "images" / picture.answer / picture.name
            path.write_bytes(picture.data + bytes(2_000))
        with Client(Settings.load(home=new_home.path)) as client:
            datasets = client.datasets()
        stored = _files(new_home.path / "store")

        # when they are submitted, or added to a dataset
        done = subprocess.run(
            [LABELMILL, *command.split(), str(tmp_path / "images")],
            env=new_home.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        )

        # then the person is told in a sentence, and nothing of them is left
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "Traceback" not in done.stderr
        assert "File too large" in done.stderr or "cannot be" in done.stderr, done.stderr
        assert _files(new_home.path / "store") == stored
        with Client(Settings.load(home=new_home.path)) as client:
            assert (client.jobs(), client.datasets()) == ([], datasets)
        trials.ran(1)


@pytest.fixture(params=["sqlite", "postgresql"])
def harness_on_disk(
    request: pytest.FixtureRequest, disk: SmallDisk, short_folder: Path, faulty_postgresql: FaultyPostgresql
) -> Iterator[Harness]:
    """A worker with two processes, whose ledger lies on the disk."""
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{disk.path}/ledger/ledger.sqlite3"
        else:
            url = faulty_postgresql.create("on_disk", disk=disk.path)
            stack.callback(faulty_postgresql.drop, "on_disk")
        yield stack.enter_context(Harness(short_folder / "home", ledger_url=url))


def test_workers_wait_while_the_ledgers_disk_is_full(
    harness_on_disk: Harness, disk: SmallDisk, matrix: Matrix, tmp_path: Path
) -> None:
    with matrix.trials("the ledger's disk is full", "I1-I5", short=1, long=5) as trials:
        for _ in range(trials.wanted):
            trials.ran(1, _fill_the_disk_under_a_job(harness_on_disk, disk, tmp_path))


def _fill_the_disk_under_a_job(harness: Harness, disk: SmallDisk, tmp_path: Path) -> Verdict:
    log = harness.faults / "worker0.log"
    before = len(log.read_text())

    def both_said(text: str) -> bool:
        return log.read_text()[before:].count(text) == 2  # the worker has two processes

    def attempts() -> int:
        # On an open connection: PostgreSQL may have no room for a new one.
        with harness.ledger.reading() as connection:
            return connection.scalar(sa.select(sa.func.sum(chunks.c.attempts)).filter_by(job_id=job)) or 0

    # given a deployment that is well, whose disk was reported: on a full disk, a row can only be updated
    _report_disk(harness, disk)
    well = scrape(harness.settings)

    # and a job under way
    images = pictures(6_000)
    job = harness.submit(images, chunk_images=25)
    until(lambda: harness.done(job) > 0, "the first chunk is done")

    # when the disk is full
    disk.fill()
    until(lambda: both_said("claims nothing until the ledger's disk has room"), "the workers wait")
    noticed = attempts()

    # then all sources name it, and no chunk is tried
    if not harness.ledger.is_sqlite:  # the exporter reads the disk of SQLite itself
        _report_disk(harness, disk)
    logged = log.read_text()[before:]
    assert not missing_signs(FULL, harness.settings, Part.WORKER, well, tmp_path, logged)
    time.sleep(FULL_SECONDS)
    assert attempts() == noticed

    # and when there is room again, then the work resumes by itself, and no crash is counted
    disk.make_room()
    verdict = harness.judge(job, images)
    assert {chunk["crashes"] for chunk in chunk_rows(harness.url, job)} == {0}
    assert both_said("disk has room again")
    return verdict


def _report_disk(harness: Harness, disk: SmallDisk) -> None:
    """Report the free space, as the machine of a PostgreSQL server does (docs/reference/metrics.md)."""
    with harness.ledger.transaction() as connection:
        report_disk(connection, read_disk("ledger", disk.path))


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
