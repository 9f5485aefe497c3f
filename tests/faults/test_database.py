"""The database is locked: workers wait, and no image is blamed."""

from __future__ import annotations

import contextlib
import random
import time

import psycopg

from jobs.ledger.sqlite import driver
from tests.console import until
from tests.faults.checker import attempts_are_bounded
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix
from tests.secured import conninfo


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
