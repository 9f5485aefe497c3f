"""The ways to run a worker, and what its processes hold."""

from __future__ import annotations

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


def test_the_parent_has_no_tensorflow_and_each_child_has_its_own(stack: Home, few_digits: Path) -> None:
    # given a stack that has classified something
    stack.ok("submit", few_digits, "--watch")

    # when its processes are looked at
    parents = [pid for pid in _celery_processes(stack.path) if not _parent_is_celery(pid)]
    children = [pid for pid in _celery_processes(stack.path) if _parent_is_celery(pid)]

    # then worker, trainer, webhooks and beat hold no TensorFlow; the classifying children do
    assert len(parents) == 4
    assert not any(map(has_tensorflow, parents))
    classifying = [pid for pid in children if "labelmill.classify" in _command(pid)]
    assert len(classifying) == usable_cores()
    until(lambda: all(map(has_tensorflow, classifying)), "all children are warm")


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


def test_a_stack_ends_with_its_parent_however_that_dies(new_home: Home, tmp_path: Path) -> None:
    # given a stack
    with new_home.started("up", log=tmp_path / "up.log") as up:
        wait_for_broker(new_home)
        until(lambda: len(processes_below(up.pid)) >= 5, "everything has started")
        started = processes_below(up.pid)

        # when its parent is killed and cannot say goodbye
        up.send_signal(signal.SIGKILL)

        # then nothing of it is left
        until(lambda: not any(map(is_alive, started)), "all processes have ended", seconds=60)
    assert not broker_answers(Settings(home=new_home.path))


def test_two_homes_run_side_by_side(stack: Home, new_home: Home, few_digits: Path, tmp_path: Path) -> None:
    # given a second stack beside the first
    with new_home.started("up", "--processes", "1", log=tmp_path / "up.log"):
        wait_for_broker(new_home)

        # when each gets a job
        here = new_home.ok("submit", few_digits, "--watch").strip()
        there = stack.ok("submit", few_digits, "--watch").strip()

        # then each knows its own only
        assert new_home.run("status", there).returncode == 2
        assert stack.run("status", here).returncode == 2

        # and nobody starts a second one in the same home
        again = new_home.run("up")
        assert again.returncode == 2
        assert "already up" in again.stderr


def _celery_processes(home: Path) -> list[int]:
    wanted = f"{ENV_PREFIX}HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"worker.app" in (entry / "cmdline").read_bytes() and wanted in (
                    (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _command(pid: int) -> str:
    return (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")


def _parent_is_celery(pid: int) -> bool:
    parent = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return "worker.app" in _command(parent)
