"""Processes of their own, and in them a producer, as a user's would be, that keeps a large job under way."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Final, ParamSpec, Self, TypeVar

import sqlalchemy as sa

from benchmarks.harness.pipeline import JOB_SECONDS
from jobs.errors import Conflict
from jobs.schema import UNFINISHED, jobs
from jobs.settings import Settings
from labelmill.client import Client
from producer.sources import Sources

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

#: Seconds between two checks whether the workers have begun.
_LOOK_SECONDS: Final = 0.05

#: Its size distinguishes the large job from those of one image.
_OPEN: Final = sa.select(jobs.c.id, jobs.c.succeeded).where(jobs.c.state.in_(UNFINISHED), jobs.c.total > 1)


class LargeJob:
    """Keep the workers busy with a large job, and another one after it, as a context manager.

    A job takes the same files repeatedly. Each is submitted by a fresh process.
    """

    def __init__(self, client: Client, folder: Path, images: int, *, model: str | None = None) -> None:
        """`model`: the id of the model that classifies it. Default: the champion."""
        self.jobs = 0  # that were begun so far
        self._model = model
        self._client = client
        self._folder = folder
        self._images = images
        self._producers = _fresh_processes()
        self._future: Future[None] | None = None

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def under_way(self) -> bool:
        """Return whether the large job runs. If it has ended, begin the next one first."""
        if self._open() is not None:
            return True
        self._begin()
        return False

    def stop(self) -> None:
        """Cancel the job."""
        if (found := self._open()) is not None:
            with contextlib.suppress(Conflict):  # it ended at this moment
                self._client.cancel(found.id)
        if self._future is not None:
            self._future.exception()  # a producer whose job is cancelled stops
        self._producers.shutdown()

    def _begin(self) -> None:
        """Begin a job and wait for its first results. Raises what the producer does, RuntimeError."""
        if self._future is not None:
            self._future.result()
        self._future = self._producers.submit(
            _submit, self._client.settings, self._folder, self._images, self._model
        )
        self.jobs += 1
        deadline = time.monotonic() + JOB_SECONDS
        while (found := self._open()) is None or not found.succeeded:
            if self._future.done():
                self._future.result()
                if self._open() is None:
                    return  # so small that it has ended already
            if time.monotonic() > deadline:
                raise RuntimeError(f"the large job has not begun after {JOB_SECONDS:g} seconds")
            time.sleep(_LOOK_SECONDS)

    def _open(self) -> sa.Row[Any, Any] | None:
        with self._client.ledger.reading() as connection:
            return connection.execute(_OPEN).first()


def in_fresh_process(
    function: Callable[_Given, _Result], *args: _Given.args, **more: _Given.kwargs
) -> _Result:
    """Return what the function returns, or raise what it raises."""
    with _fresh_processes() as pool:
        return pool.submit(function, *args, **more).result()


def _fresh_processes() -> ProcessPoolExecutor:
    """Return a pool of one process, which is replaced after each task.

    Spawned, not forked: it must not share this process's memory, nor this one have TensorFlow's threads.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_ignore_ctrl_c, max_tasks_per_child=1)


def _ignore_ctrl_c() -> None:
    """Leave Ctrl-C to the parent, which then ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _submit(settings: Settings, folder: Path, images: int, model: str | None) -> None:
    sources = chain.from_iterable(map(Sources, repeat([str(folder)])))
    with Client(settings) as client:
        client.submission(islice(sources, images), model=model)
