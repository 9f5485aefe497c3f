"""One turn of one way: started in an empty database, a pass to become warm, a pass that counts, ended.

Each turn begins from nothing, so that no way works while others wait beside it, or in tables they filled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.bare_loop import BareLoop, plans
from benchmarks.check import read_labels
from benchmarks.databases import Databases, Work, databases
from benchmarks.model import TrainedModel
from benchmarks.pipeline import Pipeline
from benchmarks.side_by_side.others import Other, Way
from benchmarks.side_by_side.talk import Places
from benchmarks.surroundings import settings_in, settle, short_folder
from jobs.ids import new_id
from jobs.settings import Settings
from labelmill.stack import Stack

Labels = dict[str, str]


class Turn(NamedTuple):
    """Seconds from nothing to a model that waits, and of the pass that counts; and what came of it."""

    start: float
    work: float
    labels: Labels


@dataclass(frozen=True)
class Hall:
    """Where all turns take place."""

    model: TrainedModel
    processes: int
    folder: Path
    images: int  # in the folder
    first_folder: Path  # with a chunk or more for each of our workers, to make them warm

    @contextmanager
    def opened(self) -> Iterator[tuple[Databases, Settings]]:
        """Two empty databases, and settings for the first."""
        with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
            yield both, settings_in(home, both.pipeline, self.processes)


def labelmill(hall: Hall) -> Turn:
    """Our own turn. Its start ends with a first job, because only that tells that both workers are warm."""
    with hall.opened() as (both, settings):
        began = time.perf_counter()
        with Pipeline(settings, hall.model) as pipeline:
            pipeline.warm_up(hall.first_folder)
            start = time.perf_counter() - began
            pipeline.classify(hall.folder)
            settle(both.settle)
            done = pipeline.classify(hall.folder)
            return Turn(start, done.seconds, read_labels(both.pipeline, done.job_id, images=hall.images))


def bare_loop(hall: Hall) -> Turn:
    """The turn of the limit."""
    with hall.opened() as (both, _):
        began = time.perf_counter()
        with BareLoop(plans(both.bare_loop, hall.model, hall.processes)) as loop:
            start = time.perf_counter() - began
            loop.classify(hall.folder)
            settle(both.settle)
            done = loop.classify(hall.folder)
            return Turn(start, done.seconds, read_labels(both.bare_loop, done.job_id, images=hall.images))


def turn_of(way: Way, python: Path) -> Callable[[Hall], Turn]:
    """What gives another way its turns."""

    def turn(hall: Hall) -> Turn:
        with hall.opened() as (both, settings), Stack(settings, logs=settings.home / "logs", worker=False):
            scratch = settings.home / "s"  # a short name: Ray has sockets below it
            scratch.mkdir()
            places = Places(
                database=both.bare_loop.replace("+psycopg", "", 1),
                broker=settings.broker,
                model=str(hall.model.path),
                classes=list(hall.model.row.classes),
                processes=hall.processes,
                scratch=str(scratch),
            )
            with Other(way, python, places) as other:
                other.classify(hall.folder, new_id())
                settle(both.settle)
                job_id = new_id()
                took = other.classify(hall.folder, job_id)
                labels = read_labels(both.bare_loop, job_id, images=hall.images)
                return Turn(other.start_seconds + took.start, took.work, labels)

    return turn
