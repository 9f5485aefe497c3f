"""One turn of one way: start with an empty database, one pass to become warm, one pass that counts, end.

Each turn starts from nothing, so that no way shares the machine or its tables with another.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.bare_loop import BareLoop, plans
from benchmarks.harness.check import read_labels
from benchmarks.harness.pipeline import Pipeline
from benchmarks.harness.setup import PROCESSES, Setup
from benchmarks.side_by_side.protocol import Places
from jobs.ids import new_id
from labelmill.local.stack import Stack

ROOT: Final = Path(__file__).parents[2]


class Turn(NamedTuple):
    """Seconds from nothing to a loaded model, seconds of the pass that counts, and its labels."""

    start: float
    work: float
    labels: dict[str, str]
    packages: dict[str, str] | None = None  # the versions in the environment of the other ways


class Way(NamedTuple):
    """Another way to classify images."""

    name: str
    command: tuple[str, ...]  # what follows `python -m`: a module, and its arguments after the places
    images: int | None = None  # the most it is measured with; None: all of them
    photographs: bool = False  # it can also classify photographs


WAYS: Final = (
    Way("Celery, one task per image", ("celery_way", "one"), 2_000),
    Way("celery-batches", ("celery_way", "batches"), 10_000),
    Way("Ray Data, map_batches", ("ray_data",), photographs=True),
    Way("Daft, a class over paths", ("daft_class",), photographs=True),
    Way("Keras, predict over tf.data", ("keras_predict",)),
)


def labelmill(setup: Setup, images: int, first_folder: Path) -> Turn:
    """Run Labelmill's turn. Its start includes first jobs, which show that all its workers are warm."""
    began = time.perf_counter()
    with Pipeline(setup) as pipeline:
        pipeline.warm_up(first_folder)
        start = time.perf_counter() - began
        pipeline.classify(setup.folder)
        setup.settle()
        done = pipeline.classify(setup.folder)
        return Turn(start, done.seconds, read_labels(setup.databases.pipeline, done.job_id, images=images))


def bare_loop(setup: Setup, images: int) -> Turn:
    """Run the bare loop's turn."""
    began = time.perf_counter()
    with BareLoop(plans(setup.databases.other, setup.model, PROCESSES)) as loop:
        start = time.perf_counter() - began
        loop.classify(setup.folder)
        setup.settle()
        done = loop.classify(setup.folder)
        return Turn(start, done.seconds, read_labels(setup.databases.other, done.job_id, images=images))


def other(setup: Setup, images: int, way: Way, python: Path) -> Turn:
    """Run another way's turn in its own environment. Raises RuntimeError if it dies."""
    job_ids = [new_id(), new_id()]
    scratch = setup.settings.home / "s"  # a short name: Ray has sockets below it
    places = Places(
        database=setup.databases.other.replace("+psycopg", "", 1),
        broker=setup.settings.broker,
        model=str(setup.model.path),
        classes=list(setup.model.row.classes),
        shape=list(setup.model.row.input_spec.shape),
        logits=setup.model.row.logits,
        processes=PROCESSES,
        scratch=str(scratch),
        folder=str(setup.folder),
        job_ids=job_ids,
    )
    module, *arguments = way.command
    command = [str(python.absolute()), "-m", f"{__package__}.{module}", places.to_json(), *arguments]
    with Stack(setup.settings, worker=False):
        scratch.mkdir()
        began = time.perf_counter()
        took = _answer(command, scratch / "log")
    labels = read_labels(setup.databases.other, job_ids[-1], images=images)
    return Turn(took["ready"] - began + took["start"], took["work"], labels, took["packages"])


def _answer(command: list[str], log: Path) -> Any:
    """Run a way and return its answer. Raises RuntimeError if it dies."""
    # In a session of its own: Ctrl-C is for us, and its children end with it.
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):
        try:
            said, _ = process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{' '.join(command[2:3])} died; its last lines:\n{last}")
    return json.loads(said)
