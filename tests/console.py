"""The console command as a person uses it: real processes, a model trained once, a stack that is up.

A pytest plugin (tests/conftest.py names it), so that acceptance and fault tests share one trained model.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, AnyStr, Final

import numpy as np
import pytest
from PIL import Image

from jobs.settings import ENV_PREFIX, Settings
from labelmill.local.stack import broker_answers

#: No command of these tests takes longer, but on a machine that is very busy.
COMMAND_SECONDS: Final = 600.0

LABELMILL: Final = str(Path(sys.executable).parent / "labelmill")


@dataclass
class Home:
    """A state folder, and the environment in which commands use it."""

    path: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a person would have set.

        A worker has one process, because each takes seconds to import TensorFlow, unless a test sets another
        number.
        """
        usual = {ENV_PREFIX + "HOME": str(self.path), ENV_PREFIX + "PROCESSES": "1", "COLUMNS": "200"}
        return os.environ | usual | self.extra

    def run(
        self, *arguments: str | Path, stdin: str | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `labelmill ...` to its end."""
        return subprocess.run(
            [LABELMILL, *map(str, arguments)],
            env=self.environment,
            input=stdin,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def ok(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Runs `labelmill ...`, which must succeed; gives back its stdout."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        """Runs `labelmill ... --json`, which must succeed."""
        return json.loads(self.ok(*arguments, "--json"))

    @contextlib.contextmanager
    def started(self, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Starts `labelmill ...`; ends it, and whatever it started, at the end.

        The API of `up` gets any free port, because tests run side by side.
        """
        if arguments[0] == "up" and "--listen" not in arguments:
            arguments += ("--listen", "127.0.0.1:0")
        with log.open("ab") as output:
            process = subprocess.Popen(
                [LABELMILL, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            stop(process, seconds=COMMAND_SECONDS)


def stop(process: subprocess.Popen[Any], *, seconds: float) -> int:
    """Tells a process to end, and kills it where it does not; gives back its exit status."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[AnyStr]) -> Iterator[subprocess.Popen[AnyStr]]:
    """The process; where a test failed before it had ended, it is killed."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], what: str, *, seconds: float = COMMAND_SECONDS) -> None:
    """Waits for something that other processes bring about."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if condition():
            return
        answered = time.monotonic()
        if answered > deadline:
            pytest.fail(f"after {seconds:g} seconds still not: {what}")
        # As long as the answer took, because a condition that is a command keeps a core busy.
        time.sleep(max(0.05, answered - asked))


def processes_below(pid: int) -> list[int]:
    """The process and all its descendants, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_tensorflow(pid: int) -> bool:
    """Whether TensorFlow's library is mapped into the process; not into one that has ended meanwhile."""
    try:
        return "libtensorflow" in (Path("/proc") / str(pid) / "maps").read_text()
    except OSError:
        return False


@contextlib.contextmanager
def folder_for_sockets() -> Iterator[Path]:
    """Make a folder whose path is short enough for a Unix socket in it; pytest's `tmp_path` is not."""
    folder = Path(tempfile.mkdtemp(prefix="lm-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def made_once(name: str, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """Return the folder of this name that `make` fills: one folder for all processes of this test run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, unfinished = shared / name, shared / f".{name}"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # another process has failed
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """For what many tests share; its path is short enough for a Unix socket."""
    with folder_for_sockets() as folder:
        yield folder


@pytest.fixture(scope="session")
def trained(
    session_folder: Path,
    mnist_dir: Path,  # noqa: ARG001 -- must be there
    tmp_path_factory: pytest.TempPathFactory,
) -> Home:
    """A home in which `labelmill train` has run once, on all of MNIST."""
    made = made_once("trained", tmp_path_factory, lambda folder: Home(folder).ok("train"))
    home = Home(session_folder / "trained")
    shutil.copytree(made, home.path, ignore=shutil.ignore_patterns("broker", "logs"))
    return home


@pytest.fixture(scope="session")
def accuracy(trained: Home) -> float:
    """The test accuracy that the registry has for the champion."""
    [model] = trained.json("models", "list")
    return float(model["accuracy"])


def copy_home(source: Path, target: Path) -> None:
    """Copy a state folder. The images of datasets, which never change, become hard links."""

    def copy(file: str, new: str) -> None:
        (os.link if "/datasets/" in file else shutil.copy2)(file, new)

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("broker", "logs"), copy_function=copy)


@pytest.fixture
def new_home(trained: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:  # noqa: ARG001
    """A home of the test's own that already has the trained model."""
    with folder_for_sockets() as folder:
        copy_home(trained.path, folder / "home")
        yield Home(folder / "home")


@pytest.fixture(scope="session")
def stack(trained: Home, session_folder: Path) -> Iterator[Home]:
    """`labelmill up` on embedded defaults: SQLite, Valkey on a socket, a process for each core.

    Small chunks: more to go wrong.
    """
    # A copy: what is submitted here must not turn up in the homes that tests make from the trained one.
    extra = {ENV_PREFIX + "CHUNK_IMAGES": "500", ENV_PREFIX + "PROCESSES": ""}  # empty: not set
    home = Home(session_folder / "stack", extra)
    copy_home(trained.path, home.path)
    log = session_folder / "up.log"
    with home.started("up", log=log):
        wait_for_broker(home)
        yield home


def wait_for_broker(home: Home) -> None:
    """Until the embedded broker of this home answers."""
    until(lambda: broker_answers(Settings.load(home=home.path)), "the broker answers")


@pytest.fixture(scope="session")
def digits(session_folder: Path, mnist_dir: Path) -> Path:
    """MNIST's 10,000 test digits as PNG files, in ten folders named by label."""
    from tests.digits import read_digits  # NumPy, but no TensorFlow

    data = read_digits(mnist_dir)
    folder = session_folder / "digits"
    write_digits(folder, data.test_images, data.test_labels)
    return folder


def write_digits(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """PNG files in folders named by label."""
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(pixels).save(folder / str(label) / f"{number:05}.png", compress_level=1)


@pytest.fixture(scope="session")
def few_digits(digits: Path, session_folder: Path) -> Path:
    """Five of each digit."""
    folder = session_folder / "few"
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for path in sorted((digits / str(label)).iterdir())[:5]:
            shutil.copy(path, folder / str(label) / path.name)
    return folder


def rows(csv_text: str) -> list[dict[str, str]]:
    """The rows of a CSV export."""
    import csv

    return list(csv.DictReader(csv_text.splitlines()))


def agreement(predictions: Sequence[dict[str, str]]) -> float:
    """How many of the labels are those that the folders say."""
    return sum(row["label"] == Path(row["name"]).parent.name for row in predictions) / len(predictions)
