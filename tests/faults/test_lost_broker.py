"""Losing Redis loses nothing: the messages are rung again from the ledger."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import redis

from tests.console import Home, is_alive, processes_below, until
from tests.faults.stack import running_job


def test_flushing_the_broker_in_mid_job_loses_nothing(
    new_home: Home, digits: Path, accuracy: float, tmp_path: Path
) -> None:
    # given a job that is under way
    with running_job(new_home, digits, tmp_path / "up.log") as job:
        # when everything in the broker is wiped
        socket = str(job.client.settings.broker_socket)
        with contextlib.closing(redis.Redis(unix_socket_path=socket)) as client:
            client.flushall()
        job.check_under_way()

        # then nobody has to do anything
        job.check_it_ends_well(accuracy)


def test_killing_the_broker_in_mid_job_loses_nothing(
    new_home: Home, digits: Path, accuracy: float, tmp_path: Path
) -> None:
    # given a job that is under way
    with running_job(new_home, digits, tmp_path / "up.log") as job:
        # when the broker is killed, with all that it had in memory
        [broker] = [pid for pid in processes_below(job.up.pid) if "valkey-server" in _command(pid)]
        os.kill(broker, signal.SIGKILL)
        until(lambda: not is_alive(broker), "it is dead")
        job.check_under_way()

        # then the stack starts it again, and the job ends
        job.check_it_ends_well(accuracy)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    return ""
