"""The database goes away or is locked: followers and workers wait, and no image is blamed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import time

import psycopg

from jobs.ids import new_id
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.submission import open_job
from jobs.ledger.learning.models import model_or_champion
from jobs.ledger.sqlite import driver
from jobs.models.dataset import MNIST
from jobs.schema import JobState
from tests.console import LABELMILL, killed_at_the_end, until
from tests.faults.checker import attempts_are_bounded
from tests.faults.harness import HEALED_SECONDS, Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.servers import FaultyPostgresql
from tests.faults.trials import Matrix
from tests.secured import conninfo


def test_watching_goes_on_when_postgresql_is_back(
    postgresql_harness: Harness, faulty_postgresql: FaultyPostgresql
) -> None:
    # given a job that is followed and does not end
    harness, job = postgresql_harness, new_id()
    with harness.ledger.transaction() as connection:
        model = model_or_champion(connection, None, MNIST)
        open_job(connection, job, model_id=model.id)
    with killed_at_the_end(
        subprocess.Popen(
            [LABELMILL, "status", job, "--watch"],
            env=os.environ | harness.settings.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()

        # when the server crashes, and comes back once that was noticed
        faulty_postgresql.stop()
        try:
            said = process.stderr.readline()
        finally:
            faulty_postgresql.start()
        assert "trying again for two minutes" in said

        # then following goes on to the job's end
        harness.ledger.engine.dispose()
        with harness.ledger.transaction() as connection:
            end_job(connection, job, JobState.CANCELLED)
        out, _ = process.communicate(timeout=HEALED_SECONDS)
    assert re.search(r"^state +cancelled$", out, re.MULTILINE)


def test_a_lock_that_somebody_else_holds_is_waited_for(sqlite_harness: Harness, matrix: Matrix) -> None:
    with matrix.trials("SQLite locked for seconds by another process", "I1-I3", short=5, long=50) as trials:
        harness = sqlite_harness
        locked = 0
        while locked < trials.wanted:
            # given a job that is under way
            images = pictures(1_500)
            job = harness.submit(images, chunk_images=25)
            until(lambda job=job: harness.done(job) > 0, "the first chunk is done")
            before = locked

            # when another process takes the lock for a while: a backup, a person with a shell
            while locked < trials.wanted and not harness.is_over(job):
                path = str(harness.settings.home / "ledger.sqlite3")
                with contextlib.closing(driver().connect(path, timeout=30, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    time.sleep(random.uniform(0.5, 4.0))
                    other.execute("ROLLBACK")
                locked += 1
                time.sleep(0.5)

            # then the job ends
            trials.ran(locked - before, harness.judge(job, images))
            assert attempts_are_bounded(harness.url, job)


def test_who_holds_one_jobs_row_harms_no_image_and_no_other_job(
    postgresql_harness: Harness, matrix: Matrix
) -> None:
    with matrix.trials("a job's row locked beyond the time limit", "I1-I4", short=1, long=10) as trials:
        harness = postgresql_harness
        for _ in range(trials.wanted):
            # given a job under way, whose row somebody has locked before its first outcomes are written
            harness.plan.set(Rule("writing", "sleep", times=2, every=1, value=1.0))
            images, others = pictures(100), pictures(20)
            job = harness.submit(images, chunk_images=20)
            with psycopg.connect(conninfo(harness.url)) as psql:
                psql.execute("UPDATE jobs SET total = total WHERE id = %s", (job,))
                assert harness.done(job) == 0

                # when both processes of the only worker wait for it until their time is up, again and again
                other = harness.submit(others, chunk_images=20)

                # then the main process lets them go, and another job ends
                trials.ran(1, harness.judge(other, others))
                psql.rollback()

            # and when the row is free, the job ends, and no image is blamed
            trials.ran(0, harness.judge(job, images))
