"""One turn of one way: start with an empty database, one pass to become warm, one pass that counts, end.

Each turn starts from nothing, so that no way shares the machine or its tables with another.
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
from benchmarks.setup import settings_in, settle, short_folder
from benchmarks.side_by_side.others import Other, Way
from benchmarks.side_by_side.protocol import Places
from jobs.ids import new_id
from jobs.settings import Settings
from labelmill.local.stack import Stack

Labels = dict[str, str]


class Turn(NamedTuple):
    """Seconds from nothing to a loaded model, seconds of the pass that counts, and its labels."""

    start: float
    work: float
    labels: Labels


@dataclass(frozen=True)
class TurnSetup:
    """What all turns have in common."""

    model: TrainedModel
    processes: int
    folder: Path
    images: int  # in the folder
    first_folder: Path  # with a chunk or more for each of our workers, to make them warm

    @contextmanager
    def opened(self) -> Iterator[tuple[Databases, Settings]]:
        """Make two empty databases, and settings for the first."""
        with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
            yield both, settings_in(home, both.pipeline, self.processes)


def labelmill(setup: TurnSetup) -> Turn:
    """Run Labelmill's turn. Its start includes a first job, which shows that both workers are warm."""
    with setup.opened() as (both, settings):
        began = time.perf_counter()
        with Pipeline(settings, setup.model) as pipeline:
            pipeline.warm_up(setup.first_folder)
            start = time.perf_counter() - began
            pipeline.classify(setup.folder)
            settle(both.settle)
            done = pipeline.classify(setup.folder)
            return Turn(start, done.seconds, read_labels(both.pipeline, done.job_id, images=setup.images))


def bare_loop(setup: TurnSetup) -> Turn:
    """Run the bare loop's turn."""
    with setup.opened() as (both, _):
        began = time.perf_counter()
        with BareLoop(plans(both.bare_loop, setup.model, setup.processes)) as loop:
            start = time.perf_counter() - began
            loop.classify(setup.folder)
            settle(both.settle)
            done = loop.classify(setup.folder)
            return Turn(start, done.seconds, read_labels(both.bare_loop, done.job_id, images=setup.images))


def turn_of(way: Way, python: Path) -> Callable[[TurnSetup], Turn]:
    """Return the function that runs another way's turn."""

    def turn(setup: TurnSetup) -> Turn:
        with setup.opened() as (both, settings), Stack(settings, worker=False):
            scratch = settings.home / "s"  # a short name: Ray has sockets below it
            scratch.mkdir()
            places = Places(
                database=both.bare_loop.replace("+psycopg", "", 1),
                broker=settings.broker,
                model=str(setup.model.path),
                classes=list(setup.model.row.classes),
                processes=setup.processes,
                scratch=str(scratch),
            )
            with Other(way, python, places) as other:
                other.classify(setup.folder, new_id())
                settle(both.settle)
                job_id = new_id()
                took = other.classify(setup.folder, job_id)
                labels = read_labels(both.bare_loop, job_id, images=setup.images)
                return Turn(other.start_seconds + took.start, took.work, labels)

    return turn
