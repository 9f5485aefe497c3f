"""What Labelmill is measured against: the same stages in a plain loop, without queue or ledger protocol.

As many processes as the pipeline has workers. Each takes its share of the files, reads, decodes and predicts
with the same code as the pipeline, writes its rows into a table of the same shape, and commits now and then.
No claims, no names checked, no errors expected: what is lost when a process dies is lost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from benchmarks.images import list_images
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.model import InputSpec

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

#: Rows in one transaction: as many as a chunk has by default.
COMMIT_ROWS: Final = 2_048

_COLUMNS: Final = '(job_id, "index", name, label, confidence)'

Row = tuple[str, int, str, str, float]


@dataclass(frozen=True)
class Plan:
    """All that a process has to know to begin."""

    url: str
    model: Path
    classes: tuple[str, ...]
    spec: InputSpec
    processes: int
    number: int  # of this process; the first is 0


class Looped(NamedTuple):
    """One pass over all files."""

    job_id: str
    seconds: float


class BareLoop:
    """A context manager: inside it the processes wait, warm, for `classify`."""

    def __init__(self, plans: list[Plan]) -> None:
        self._plans = plans
        self._lines: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        # Spawned, not forked: TensorFlow does not survive a fork.
        context = multiprocessing.get_context("spawn")
        try:
            for plan in self._plans:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(plan, theirs), daemon=True)
                process.start()
                theirs.close()
                self._lines.append(ours)
                self._processes.append(process)
            self._answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def classify(self, folder: Path) -> Looped:
        """Classifies all images below the folder, once. Raises RuntimeError where a process dies."""
        job_id = new_id()
        began = time.perf_counter()
        for line in self._lines:
            line.send((folder, job_id))
        self._answers()
        return Looped(job_id, time.perf_counter() - began)

    def stop(self) -> None:
        """Ends the processes."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.terminate()
            process.join()
        self._lines.clear()
        self._processes.clear()

    def _answers(self) -> None:
        try:
            for line in self._lines:
                line.recv()
        except EOFError:
            raise RuntimeError("a process of the bare loop died; it said why above") from None


def _serve(plan: Plan, line: Connection) -> None:
    """One process: waits for a folder, classifies its share, answers; until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the line
    from worker.predicting.classifier import Classifier, configure_threads

    configure_threads(plan.processes)
    classifier = Classifier.load(plan.model, plan.classes, plan.spec)
    classifier.warm_up()
    with contextlib.closing(Ledger(plan.url)) as database:
        line.send(None)
        with contextlib.suppress(EOFError):
            while True:
                folder, job_id = line.recv()
                _classify_share(plan, folder, job_id, classifier, database)
                line.send(None)


def _classify_share(plan: Plan, folder: Path, job_id: str, classifier: Classifier, database: Ledger) -> None:
    import numpy as np

    from worker.predicting.classifier import BATCH
    from worker.predicting.decode import decode

    paths = list_images(folder)
    first = len(paths) * plan.number // plan.processes
    last = len(paths) * (plan.number + 1) // plan.processes
    write = _insert if database.is_sqlite else _copy
    pixels = np.empty((BATCH, *plan.spec.shape), np.uint8)
    rows: list[Row] = []
    for start in range(first, last, BATCH):
        names = paths[start : min(start + BATCH, last)]
        for place, path in enumerate(names):
            pixels[place] = decode(_read(path), plan.spec)
        found = classifier.predict(pixels[: len(names)])
        answers = zip(names, found.class_index.tolist(), found.confidence.tolist(), strict=True)
        for index, (name, label, confidence) in enumerate(answers, start):
            rows.append((job_id, index, name, plan.classes[label], confidence))
        if len(rows) >= COMMIT_ROWS:
            _commit(database, write, rows)
    _commit(database, write, rows)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def _commit(database: Ledger, write: Callable[[Any, list[Row]], None], rows: list[Row]) -> None:
    with database.transaction() as connection:
        write(connection.connection.driver_connection, rows)
    rows.clear()


def _copy(driver: Any, rows: list[Row]) -> None:
    with driver.cursor() as cursor, cursor.copy(f"COPY predictions {_COLUMNS} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _insert(driver: Any, rows: list[Row]) -> None:
    driver.executemany(f"INSERT INTO predictions {_COLUMNS} VALUES (?, ?, ?, ?, ?)", rows)
