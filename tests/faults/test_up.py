"""`labelmill up` starts again what is killed: a person who has it running has to do nothing."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from jobs.settings import ENV_PREFIX, Settings
from labelmill import Client
from tests.console import (
    COMMAND_SECONDS,
    Home,
    has_tensorflow,
    is_alive,
    processes_below,
    until,
    wait_for_broker,
)
from tests.faults.checker import Expected, check_job
from tests.faults.trials import Matrix

#: Small chunks and a short lease: the faults are sure to come in the middle, and nobody waits long.
FAST = {ENV_PREFIX + "CHUNK_IMAGES": "50", ENV_PREFIX + "LEASE_SECONDS": "5", ENV_PREFIX + "PROCESSES": "2"}


def test_a_stack_whose_processes_are_killed_comes_back(
    new_home: Home, digits: Path, tmp_path: Path, matrix: Matrix
) -> None:
    with matrix.trials("labelmill up: broker, then worker killed", "I1-I3", short=2, long=2) as trials:
        # given a stack with a job under way
        new_home.extra = FAST
        with (
            contextlib.ExitStack() as stack,
            new_home.started("up", log=tmp_path / "up.log") as up,
            Client(Settings.load(home=new_home.path)) as client,
        ):
            wait_for_broker(new_home)
            until(lambda: any(map(has_tensorflow, processes_below(up.pid))), "a process is warm")
            # The workers are about as fast as the producer, so the job would end with its submission.
            submitting = stack.enter_context(
                new_home.started("submit", *[str(digits)] * 4, log=tmp_path / "submit.log")
            )
            until(lambda: any(job.succeeded for job in client.jobs()), "the first chunk is done")
            [job] = [status.id for status in client.jobs()]

            # when its broker is killed, and then its worker
            for name in ("valkey-server", "labelmill.classify"):
                victim = next(pid for pid in processes_below(up.pid) if name in _command(pid))
                os.kill(victim, signal.SIGKILL)
                until(lambda victim=victim: not is_alive(victim), "it is dead")
                assert not client.status(job).finished, "the fault came too late to be one"

            # then both are started again, and the job ends with every image once
            assert submitting.wait(COMMAND_SECONDS) == 0
            until(lambda: client.status(job).finished, "the job has ended")
            names = [prediction.name for prediction in client.predictions(job)]
            assert sorted(names) == sorted(4 * list(map(str, digits.rglob("*.png"))))
            url = f"sqlite:///{new_home.path / 'ledger.sqlite3'}"
            trials.ran(2, check_job(url, job, [Expected(name, None) for name in names]))


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    return ""
