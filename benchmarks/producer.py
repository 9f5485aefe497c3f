"""A producer in a process of its own, as a person's would be: the same files again and again, as one job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple, Self

from benchmarks.processes import peak_kib
from jobs.queue import Bell, make_app
from jobs.settings import Settings
from jobs.store import Store
from labelmill.client import Client
from producer.sources import SourceImage, Sources
from producer.submit import submit


class Submission(NamedTuple):
    """One job that was submitted."""

    job_id: str
    began: float  # by time.perf_counter, which all processes of a Linux machine share
    submitted: float
    peak_kib: int  # the most memory that the producer had in use, from its start to its end


class Producer:
    """A context manager: each submission gets a fresh process, so that its memory is its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._pool = ProcessPoolExecutor(
            1,
            # Spawned, not forked: nothing of this process's memory is in it.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_leave_ctrl_c,
            max_tasks_per_child=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, images: int) -> Future[Submission]:
        """Begins a job of so many images; the future holds what came of it, or what `submit` raises."""
        return self._pool.submit(_submit, self._settings, self._folder, images)


class Door:
    """A context manager: inside it, jobs are submitted over one connection to the broker, and of images from
    anywhere. `Client.submit` connects for each job anew.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._store = Store(client.settings.store)
        self._bell = Bell(make_app(client.settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.close()

    def submit(self, images: Iterable[SourceImage]) -> str:
        """One job; gives back its id. Raises what `producer.submit` does."""
        return submit(
            images,
            ledger=self._client.ledger,
            store=self._store,
            bell=self._bell,
            chunk_images=self._client.settings.chunk_images,
        ).job_id


def _submit(settings: Settings, folder: Path, images: int) -> Submission:
    with Client(settings) as client, Door(client) as door:
        began = time.perf_counter()
        job_id = door.submit(_again_and_again(folder, images))
        return Submission(job_id, began, time.perf_counter(), peak_kib(os.getpid()))


def _again_and_again(folder: Path, images: int) -> Iterator[SourceImage]:
    return islice(chain.from_iterable(map(Sources, repeat([str(folder)]))), images)


def _leave_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent, which then ends us
