"""A producer in a process of its own, as a user's would be: the same files repeatedly, as one job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple, Self

from benchmarks.processes import peak_kib
from jobs.settings import Settings
from labelmill.client import Client
from producer.sources import SourceImage, Sources


class Submission(NamedTuple):
    """One job that was submitted."""

    job_id: str
    began: float  # by time.perf_counter, which all processes of a Linux machine share
    submitted: float
    peak_kib: int  # the most memory that the producer had in use, from its start to its end


class Producer:
    """Submit each job from a fresh process, as a context manager."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._pool = ProcessPoolExecutor(
            1,
            # Spawned, not forked: it must not share this process's memory.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=ignore_ctrl_c,
            max_tasks_per_child=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, images: int, *, model: str | None = None) -> Future[Submission]:
        """Begin a job of so many images; the future holds the submission, or what `submit` raises."""
        return self._pool.submit(_submit, self._settings, self._folder, images, model)


def _submit(settings: Settings, folder: Path, images: int, model: str | None) -> Submission:
    with Client(settings) as client:
        began = time.perf_counter()
        job_id = client.submission(_again_and_again(folder, images), model=model).job_id
        return Submission(job_id, began, time.perf_counter(), peak_kib(os.getpid()))


def _again_and_again(folder: Path, images: int) -> Iterator[SourceImage]:
    return islice(chain.from_iterable(map(Sources, repeat([str(folder)]))), images)


def ignore_ctrl_c() -> None:
    """Leave Ctrl-C to the parent, which then ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
