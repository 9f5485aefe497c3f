"""The database is locked: workers wait, and no image is blamed."""

from __future__ import annotations

import contextlib
import random
import time

from jobs.ledger.sqlite import driver
from tests.console import until
from tests.faults.checker import attempts_are_bounded
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.faults.trials import Matrix


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
