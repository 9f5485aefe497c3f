"""kill -9 in mid-job: the job still ends, every image once."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.schema import chunks
from jobs.settings import ENV_PREFIX, Settings
from labelmill import Client
from tests.console import (
    LABELMILL,
    Home,
    agreement,
    has_tensorflow,
    is_alive,
    processes_below,
    rows,
    until,
    wait_for_broker,
)

#: Small chunks and a short lease: the kill is sure to come in the middle, and nobody waits long for it.
FAST = {ENV_PREFIX + "CHUNK_IMAGES": "100", ENV_PREFIX + "LEASE_SECONDS": "5", ENV_PREFIX + "PROCESSES": "2"}


@pytest.mark.parametrize("victim", ["a child", "the whole worker"])
def test_the_job_ends_with_every_image_once(
    new_home: Home, digits: Path, accuracy: float, tmp_path: Path, victim: str
) -> None:
    new_home.extra = FAST
    with (
        new_home.started("up", log=tmp_path / "up.log") as up,
        Client(Settings.load(home=new_home.path)) as client,
    ):
        # given a stack with two warm processes, and a job of many chunks of which the first is done
        wait_for_broker(new_home)
        until(lambda: len(_warm(up.pid)) == 2, "both processes are warm")
        child = _warm(up.pid)[0]
        submitting = subprocess.Popen(
            [LABELMILL, "submit", str(digits)],
            env=new_home.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        until(lambda: any(job.succeeded for job in client.jobs()), "the first chunk is done")

        # when a process that classifies, or its parent, is killed
        killed = child if victim == "a child" else _parent(child)
        os.kill(killed, signal.SIGKILL)
        until(lambda: not is_alive(killed), "it is dead")
        [status] = client.jobs()
        assert not status.finished, "the kill came too late to be one"

        # then the job ends nevertheless
        output, _ = submitting.communicate(timeout=60)
        watched = new_home.run("status", output.strip(), "--watch")
        assert watched.returncode == 0, watched.stderr

        # and the work that was lost was done again
        with client.ledger.reading() as connection:
            assert connection.scalar(sa.select(sa.func.max(chunks.c.attempts))) == 2

    # and every image has its row, none twice, as right as ever
    predictions = rows(new_home.ok("predictions", output.strip(), "--format", "csv"))
    assert sorted(row["name"] for row in predictions) == sorted(map(str, digits.rglob("*.png")))
    assert [int(row["index"]) for row in predictions] == list(range(len(predictions)))
    assert agreement(predictions) == accuracy


def _warm(pid: int) -> list[int]:
    return [child for child in processes_below(pid) if has_tensorflow(child)]


def _parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
