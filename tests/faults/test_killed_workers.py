"""kill -9 in mid-job: the job still ends, every image once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.schema import ChunkState, chunks
from tests.console import Home, is_alive, until
from tests.faults.stack import RunningJob, running_job


@pytest.mark.parametrize("victim", ["a child", "the whole worker"])
def test_the_job_ends_with_every_image_once(
    new_home: Home, digits: Path, accuracy: float, tmp_path: Path, victim: str
) -> None:
    # given a job that is under way, and a process in the middle of a chunk
    with running_job(new_home, digits, tmp_path / "up.log") as job:
        child = _stopped_in_mid_chunk(job)

        # when it, or its parent, is killed
        killed = child if victim == "a child" else _parent(child)
        os.kill(killed, signal.SIGKILL)
        if killed != child:
            os.kill(child, signal.SIGCONT)  # it has lost its parent, and has to find out by itself
        until(lambda: not is_alive(killed), "it is dead")
        job.check_under_way()

        # then the job ends nevertheless, with every image once
        job.check_it_ends_well(accuracy)

        # and where a child died, the chunk it was at was done again
        if victim == "a child":
            with job.client.ledger.reading() as connection:
                assert connection.scalar(sa.select(sa.func.max(chunks.c.attempts))) == 2
        until(lambda: not is_alive(child), "the child is gone too")


def _stopped_in_mid_chunk(job: RunningJob) -> int:
    """Stops a classifying process at a moment when it holds a claim; gives back its pid."""
    deadline = time.monotonic() + 60
    [child, *_] = job.children
    while time.monotonic() < deadline:
        os.kill(child, signal.SIGSTOP)
        with job.client.ledger.reading() as connection:
            owners = connection.scalars(sa.select(chunks.c.owner).where(chunks.c.state == ChunkState.CLAIMED))
            if any(owner.endswith(f"/{child}") for owner in owners):
                return child
        os.kill(child, signal.SIGCONT)
        time.sleep(0.002)
    pytest.fail("the process was never found in the middle of a chunk")


def _parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
