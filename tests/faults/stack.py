"""A stack with small chunks and a short lease, and a job in it that is under way."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobs.settings import ENV_PREFIX, Settings
from labelmill import Client
from tests.console import (
    LABELMILL,
    Home,
    agreement,
    has_tensorflow,
    processes_below,
    rows,
    until,
    wait_for_broker,
)

#: Small chunks and a short lease: a fault is sure to come in the middle, and nobody waits long for it.
FAST: Final = {
    ENV_PREFIX + "CHUNK_IMAGES": "10",
    ENV_PREFIX + "LEASE_SECONDS": "5",
    ENV_PREFIX + "PROCESSES": "2",
}


@dataclass
class RunningJob:
    """A job whose first chunk is done and whose last is not."""

    home: Home
    client: Client
    up: subprocess.Popen[bytes]
    submitting: subprocess.Popen[str]
    folder: Path

    def check_under_way(self) -> None:
        """Fails where the fault came too late to be one."""
        [status] = self.client.jobs()
        assert not status.finished, f"the fault came too late to be one: {status}"

    def check_it_ends_well(self, accuracy: float) -> None:
        """Every image has its row, none twice, as right as the model is."""
        job = self.submitting.communicate(timeout=120)[0].strip()
        watched = self.home.run("status", job, "--watch")
        assert watched.returncode == 0, watched.stderr
        predictions = rows(self.home.ok("predictions", job, "--format", "csv"))
        assert sorted(row["name"] for row in predictions) == sorted(map(str, self.folder.rglob("*.png")))
        assert [int(row["index"]) for row in predictions] == list(range(len(predictions)))
        assert agreement(predictions) == accuracy


@contextlib.contextmanager
def running_job(home: Home, folder: Path, log: Path) -> Iterator[RunningJob]:
    """A stack whose two processes are warm, and a job of many chunks in it of which the first is done."""
    home.extra = FAST
    with home.started("up", log=log) as up, Client(Settings.load(home=home.path)) as client:
        wait_for_broker(home)
        until(lambda: len(warm_children(up.pid)) == 2, "both processes are warm")
        submitting = subprocess.Popen(
            [LABELMILL, "submit", str(folder)],
            env=home.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            until(lambda: any(job.succeeded for job in client.jobs()), "the first chunk is done")
            yield RunningJob(home, client, up, submitting, folder)
        finally:
            submitting.kill()
            submitting.wait()


def warm_children(pid: int) -> list[int]:
    """Those of a stack's processes that have TensorFlow in them."""
    return [child for child in processes_below(pid) if has_tensorflow(child)]
