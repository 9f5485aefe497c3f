"""Commands that start a stack for themselves: what keeps it from starting, or ends it, is told and waits for
nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from jobs.settings import ENV_PREFIX, Settings
from jobs.store import Store
from labelmill import Client
from tests.console import COMMAND_SECONDS, LABELMILL, Home, processes_below, until
from tests.kerasfile import keras_file
from tests.registering import register_digits


@pytest.fixture
def home(short_folder: Path) -> Home:
    """A home with a champion, which need not be a model that computes anything."""
    home = Home(short_folder / "home")
    with Client(Settings.load(home=home.path)) as client:
        register_digits(client.ledger, Store(client.settings.store), keras_file(), champion=True)
    return home


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.new("L", (28, 28)).save(path)
    return path


@pytest.mark.parametrize("command", [["classify", "IMAGE"], ["retrain", "--wait"], ["up"]], ids=" ".join)
def test_a_cron_line_that_is_none_is_told_before_anything_is_started(
    home: Home, image: Path, command: list[str]
) -> None:
    # given a schedule with a field too few, which every worker refuses
    home.extra = {ENV_PREFIX + "RETRAIN_CRON": "0 3 * *"}

    # when a command would start a worker, then it names the setting
    done = home.run(*[str(image) if word == "IMAGE" else word for word in command])
    assert done.returncode == 2, done.stderr
    assert "LABELMILL_RETRAIN_CRON: '0 3 * *' has 4 fields" in done.stderr
    assert not (home.path / "logs").exists()

    # and no run is left behind that nobody would train
    assert home.json("runs") == []


def test_a_worker_that_dies_ends_the_command_that_started_it(home: Home, image: Path) -> None:
    # given a job whose worker was started for it, when the worker is killed
    ended = run_and_kill(home, "worker", "classify", str(image))

    # then the command ends as well, and says where to look and what becomes of the job
    [job] = home.json("jobs")
    assert ended.returncode == 1, ended.stderr
    assert f"The worker ended with -9: see {home.path / 'logs' / 'worker.log'}" in ended.stderr
    assert f"job {job['id']} goes on when `labelmill up` runs" in ended.stderr
    assert job["state"] != "done"


def test_a_trainer_that_dies_ends_the_command_that_started_it(home: Home) -> None:
    # given a run whose trainer was started for it, when the trainer is killed
    ended = run_and_kill(home, "trainer", "retrain", "--wait", "--profile", "long")

    # then the command ends as well, and the run, which nobody would train, is cancelled
    assert ended.returncode == 1, ended.stderr
    assert f"The trainer ended with -9: see {home.path / 'logs' / 'trainer.log'}" in ended.stderr
    [run] = home.json("runs")
    assert run["state"] == "cancelled"


def run_and_kill(home: Home, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `labelmill ...`; kills that process of its stack as soon as it is there."""
    command = subprocess.Popen(
        [LABELMILL, *arguments],
        env=home.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: find(name, command.pid) is not None, f"there is a {name}")
        victim = find(name, command.pid)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        out, err = command.communicate(timeout=COMMAND_SECONDS)
    finally:
        command.kill()
        command.wait()
    return subprocess.CompletedProcess(arguments, command.returncode, out, err)


def find(name: str, parent: int) -> int | None:
    """The Celery process of this name below another process."""
    for pid in processes_below(parent):
        with contextlib.suppress(OSError):
            if f"{name}@%h" in (Path("/proc") / str(pid) / "cmdline").read_text().split("\0"):
                return pid
    return None
