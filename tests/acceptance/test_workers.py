"""The ways to run a worker, and what its processes hold."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cores import usable_cores
from jobs.settings import ENV_PREFIX, Settings
from labelmill.local.stack import broker_answers
from tests.console import (
    Home,
    has_tensorflow,
    is_alive,
    processes_below,
    stop,
    until,
    wait_for_broker,
)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_plain_celery_worker_classifies_and_does_not_train(
    new_home: Home, settings: Settings, few_digits: Path, tmp_path: Path
) -> None:
    # given a worker that was started as Celery's own documentation says
    new_home.extra = {ENV_PREFIX + "BROKER_URL": settings.broker}
    log = tmp_path / "celery.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel", "info"],
            env=new_home.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        # when a job is submitted, then it is done
        done = new_home.run("submit", few_digits, "--watch")
        assert done.returncode == 0, done.stderr
        # and the queue of the trainer is not this worker's
        banner = log.read_text().partition("[queues]")[2].partition("[tasks]")[0]
        assert "labelmill.classify" in banner
        assert "labelmill.retrain" not in banner
    finally:
        assert stop(worker, seconds=60) == 0


def test_only_children_have_tensorflow_and_all_end_with_a_parent_that_is_killed(
    new_home: Home, few_digits: Path, tmp_path: Path
) -> None:
    # given a stack that has classified something
    new_home.extra = {ENV_PREFIX + "PROCESSES": ""}  # not set
    with new_home.started("up", log=tmp_path / "up.log") as up:
        wait_for_broker(new_home)
        new_home.ok("submit", few_digits, "--watch")

        # then worker, trainer, webhooks and beat hold no TensorFlow; the children that classify do
        started = processes_below(up.pid)
        celery = [pid for pid in started if "worker.app" in _read(pid, "cmdline")]
        parents = [pid for pid in celery if f"PPid:\t{up.pid}\n" in _read(pid, "status")]
        assert len(parents) == 4
        assert not any(map(has_tensorflow, parents))
        children = set(celery) - set(parents)
        classifying = [pid for pid in children if "labelmill.classify" in _read(pid, "cmdline")]
        assert len(classifying) == usable_cores()
        until(lambda: all(map(has_tensorflow, classifying)), "all children are warm")

        # and when the parent of all is killed and cannot say goodbye, then nothing of it is left
        up.send_signal(signal.SIGKILL)
        with contextlib.suppress(pytest.fail.Exception):
            until(lambda: not any(map(is_alive, started)), "all processes have ended", seconds=60)
        assert [_read(pid, "cmdline") for pid in started if is_alive(pid)] == []
    assert not broker_answers(Settings(home=new_home.path))


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):  # it has ended
        return (Path("/proc") / str(pid) / name).read_text()
    return ""
