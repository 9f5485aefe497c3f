"""kill -9 in mid-job: the job still ends, every image once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.schema import chunks
from tests.console import Home, is_alive, until
from tests.faults.stack import running_job


@pytest.mark.parametrize("victim", ["a child", "the whole worker"])
def test_the_job_ends_with_every_image_once(
    new_home: Home, digits: Path, accuracy: float, tmp_path: Path, victim: str
) -> None:
    # given a job that is under way
    with running_job(new_home, digits, tmp_path / "up.log") as job:
        child = job.children[0]

        # when a process that classifies, or its parent, is killed
        killed = child if victim == "a child" else _parent(child)
        os.kill(killed, signal.SIGKILL)
        until(lambda: not is_alive(killed), "it is dead")
        job.check_under_way()

        # then the job ends nevertheless, with every image once
        job.check_it_ends_well(accuracy)

        # and the work that was lost was done again
        with job.client.ledger.reading() as connection:
            assert connection.scalar(sa.select(sa.func.max(chunks.c.attempts))) == 2


def _parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
