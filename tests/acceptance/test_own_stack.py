"""Commands that start a stack: what they print, and what they say if it cannot start or dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
import redis
from PIL import Image

from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import KEY_PREFIX
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.store import Store
from labelmill import Client
from tests.console import COMMAND_SECONDS, LABELMILL, Home, killed_at_the_end, processes_below, until
from tests.kerasfile import keras_file
from tests.registering import register_digits
from tests.serving import openai_client


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


def test_up_prints_what_runs_and_its_events_and_keeps_the_logs(home: Home, tmp_path: Path) -> None:
    # given a stack, whose worker meets a message that is not Labelmill's, and is killed
    log = tmp_path / "up.log"
    with home.started("up", "--processes", "1", log=log) as up:
        until(lambda: log.read_text().count(" ready\n") == 5, "all five parts are ready")
        broker = redis.Redis(unix_socket_path=str(Settings.load(home=home.path).broker_socket))
        with contextlib.closing(broker):
            broker.lpush(KEY_PREFIX + CLASSIFY_QUEUE, "not a message")
        until(lambda: "not ours" in log.read_text(), "the worker says that it dropped the message")
        os.kill(find_worker(up.pid), signal.SIGKILL)
        until(lambda: log.read_text().count("worker   ready\n") == 2, "the worker is started again")

        # and nobody can start a second one in the same home
        again = home.run("up")
        assert again.returncode == 2
        assert "already up" in again.stderr

        # and a client with the key from the state folder can use the API
        found = re.search(r"api +(\S+)/v1, key in api-key", log.read_text())
        assert found is not None
        key = (home.path / "api-key").read_text().strip()
        with openai_client(found[1], key) as client:
            assert client.batches.list().data == []

    # then it has said what runs, where, and what to type next
    lines = log.read_text().splitlines()
    end = lines.index("Ctrl-C stops everything.")
    assert lines[0] == f"up in {home.path}"
    named = {line.split()[0] for line in lines[1:end]}
    assert {"broker", "worker", "trainer", "webhooks", "beat", "ledger", "store", "logs"} <= named
    assert any("submit FOLDER --watch" in line for line in lines[:end])

    # and then one line per event (also that this model cannot be loaded), and no banner or warning of others
    events = lines[end + 1 :]
    parts = ("beat", "broker", "trainer", "webhooks", "worker")
    assert sorted(events[:5]) == [f"{part:<8} ready" for part in parts]
    assert {line[:18] for line in events[5:]} == {
        "worker   warning: ",
        "worker   error: en",
        "worker   ready",
        "stopping when the ",
        "all stopped",
    }
    assert "worker   error: ended with -9; restarting it" in events
    assert any("dropped a message that is not ours" in line for line in events)
    assert max(map(len, lines[: end + 6])) <= 80

    # and all that the parts said is in files that only their owner can read
    folder = home.path / "logs"
    for name, words in (
        ("worker", "/MainProcess] worker@"),
        ("trainer", "/MainProcess] trainer@"),
        ("webhooks", "/MainProcess] webhooks@"),
        ("beat", "beat: Starting"),
        ("broker", "Ready to accept connections"),
    ):
        path = folder / f"{name}.log"
        assert words in path.read_text()
        assert "Please specify a different user" not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_up_says_who_has_its_port_and_moves_to_no_other(home: Home) -> None:
    # given the default port of the API, taken by this process or by somebody else
    with contextlib.ExitStack() as stack:
        who = "(process "
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", 8000)))
            who += f"{os.getpid()}) listens there"

        # When a stack starts, then it says which process has the port, and which other port to name
        up = home.run("up")
    assert up.returncode == 2
    assert "Cannot listen on 127.0.0.1:8000: " in up.stderr
    assert who in up.stderr
    assert "`--listen 127.0.0.1:8001`" in up.stderr
    assert not (home.path / "logs").exists()


def test_classify_without_a_model_starts_nothing(image: Path, short_folder: Path) -> None:
    # given a home without a model
    home = Home(short_folder / "new")

    # when an image is to be classified, then it is said what is missing, before a stack is there
    done = home.run("classify", str(image))
    assert done.returncode == 2, done.stderr
    assert "Dataset mnist has no model yet: run `labelmill train`" in done.stderr
    assert "starting a worker" not in done.stderr
    assert not (home.path / "logs").exists()


def test_classify_takes_a_model_that_is_named_and_needs_no_champion(
    short_folder: Path, image: Path, tmp_path: Path
) -> None:
    # given a home with a model that is not the champion, and a Redis that nobody answers for
    home = Home(short_folder / "home", {ENV_PREFIX + "BROKER_URL": "redis://127.0.0.1:1/0"})
    with Client(Settings.load(home=home.path)) as client:
        model = register_digits(client.ledger, Store(client.settings.store), keras_file())

    # when an image is classified without a word on the model, then it is said which words help
    done = home.run("classify", str(image))
    assert (done.returncode, "labelmill submit SOURCES --model MODEL" in done.stderr) == (2, True)

    # and when it is named, then the job has it
    log = tmp_path / "classify.log"
    with home.started("classify", str(image), "--model", model.id, log=log):
        until(lambda: "the job waits in the ledger" in log.read_text(), "the job is accepted")
    assert [job["model"] for job in home.json("jobs")] == [model.id]


def test_a_worker_that_dies_ends_the_command_that_started_it(home: Home, image: Path) -> None:
    # given a job whose worker was started for it, when the worker is killed
    with killed_at_the_end(
        subprocess.Popen(
            [LABELMILL, "classify", str(image)],
            env=home.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    ) as command:
        os.kill(find_worker(command.pid), signal.SIGKILL)
        _, said = command.communicate(timeout=COMMAND_SECONDS)

    # then the command ends as well, and says where to look and what becomes of the job
    [job] = home.json("jobs")
    assert command.returncode == 1, said
    assert f"The worker ended with -9: see {home.path / 'logs' / 'worker.log'}" in said
    assert f"job {job['id']} continues when `labelmill up` runs" in said
    assert job["state"] != "done"


def find_worker(parent: int) -> int:
    """Wait until another process has started a worker, and return the worker's main process."""
    found: list[int] = []

    def is_there() -> bool:
        for pid in processes_below(parent):
            with contextlib.suppress(OSError):
                if "worker@%h" in (Path("/proc") / str(pid) / "cmdline").read_text().split("\0"):
                    found.append(pid)
        return bool(found)

    until(is_there, "there is a worker")
    return found[0]
