"""The pipeline and the bare loop in turns: their images per second, processor time and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks.bare_loop import DEFAULT_WAY, MORE_PROCESSES, BareLoop, Way, plans
from benchmarks.harness.check import check_rows
from benchmarks.harness.databases import POSTGRESQL_FOLDER, Work
from benchmarks.harness.images import ALL_IMAGES, Pictures
from benchmarks.harness.pipeline import Pipeline
from benchmarks.harness.processes import (
    Parts,
    child_with,
    forget_peak,
    parent_of,
    peak_kib,
    processor_seconds,
    with_children,
)
from benchmarks.harness.producer import in_fresh_process
from benchmarks.harness.report import print_spreads, rounded, spread
from benchmarks.harness.setup import Setup
from jobs.settings import Settings
from labelmill.console.terminal import say

#: After the last row a worker still acknowledges its message, and others find that nothing is due.
_AFTERWARDS_SECONDS: Final = 0.15

#: The parts whose memory could grow with the images.
_WITH_IMAGES: Final[tuple[str, ...]] = ("producer", "workers")


class Cost(NamedTuple):
    """What one turn of one side cost, by part."""

    processor: dict[str, float]  # seconds on a core
    peak_kib: dict[str, int]  # of the largest process; only of the parts that hold images


@dataclass(frozen=True)
class Round:
    """One pair of measurements, in seconds, and what each side cost."""

    pipeline: float
    submit: float
    bare_loop: float
    costs: dict[str, Cost]

    @property
    def efficiency(self) -> float:
        """The pipeline's images per second, divided by the bare loop's."""
        return self.bare_loop / self.pipeline


@dataclass(frozen=True)
class Result:
    """The measurements of one database and one kind of image."""

    work: Work
    pictures: Pictures
    images: int
    settings: Settings
    database: dict[str, str]
    rounds: list[Round]
    way: Way  # of the bare loop

    @property
    def name(self) -> str:
        """The result's name: for digits the database, since photographs are for one database only."""
        name = str(self.work if self.pictures == Pictures.DIGITS else self.pictures)
        return f"{name}-{self.images}" if self.images > ALL_IMAGES[self.pictures] else name

    @property
    def processor(self) -> dict[str, dict[str, list[float]]]:
        """Each side's microseconds of processor time per image, by part, one figure per round."""
        return {
            side: {
                part: [1e6 * one.costs[side].processor[part] / self.images for one in self.rounds]
                for part in cost.processor
            }
            for side, cost in self.rounds[0].costs.items()
        }

    @property
    def memory(self) -> dict[str, list[float]]:
        """The peak memory of the pipeline's producer and workers, in MiB, one figure per round."""
        peaks = [one.costs["pipeline"].peak_kib for one in self.rounds]
        return {part: [each[part] / 1024 for each in peaks] for part in peaks[0]}

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        efficiencies = [one.efficiency for one in self.rounds]
        return {
            "work": self.name,
            "efficiency": round(median(efficiencies), 4),
            "images_per_second": {
                "pipeline": rounded(spread([self.images / one.pipeline for one in self.rounds]), 1),
                "bare_loop": rounded(spread([self.images / one.bare_loop for one in self.rounds]), 1),
            },
            "efficiency_range": [round(min(efficiencies), 4), round(max(efficiencies), 4)],
            "processor_us_per_image": {
                side: {part: rounded(spread(figures), 1) for part, figures in parts.items()}
                for side, parts in self.processor.items()
            },
            "peak_mib": {part: rounded(spread(figures), 1) for part, figures in self.memory.items()},
            "images": self.images,
            "processes": self.settings.processes,
            "bare_loop_processes": self.way.processes or self.settings.processes + MORE_PROCESSES,
            "chunk_images": self.settings.chunk_images,
            "rounds_seconds": [
                {"pipeline": one.pipeline, "submit": one.submit, "bare_loop": one.bare_loop}
                for one in self.rounds
            ],
            "database": self.database,
        }

    def print(self) -> None:
        """Print tables of the speeds, the processor time and the memory."""
        rows = {
            "pipeline, images/s": [self.images / one.pipeline for one in self.rounds],
            "bare loop, images/s": [self.images / one.bare_loop for one in self.rounds],
            "until submitted, s": [one.submit for one in self.rounds],
            "efficiency": [one.efficiency for one in self.rounds],
        }
        print_spreads(
            f"{self.images:,} {self.pictures} to {self.work} rows, "
            f"{self.settings.processes} worker processes, {len(self.rounds)} rounds",
            rows,
        )
        print_spreads(
            "processor time, µs per image",
            {
                f"{side.replace('_', ' ')}: {part}": spent
                for side, parts in self.processor.items()
                for part, spent in parts.items()
            },
        )
        print_spreads("pipeline: peak memory of a process, MiB", self.memory)


def measure(
    setup: Setup, *, work: Work, pictures: Pictures, images: int, rounds: int, way: Way = DEFAULT_WAY
) -> Result:
    """Let the pipeline and the bare loop classify the images in turns. Raises WrongRows if they differ."""
    both, measured = setup.databases, []
    with (
        Pipeline(setup) as pipeline,
        BareLoop(plans(both.other, setup.model, setup.settings.processes, way)) as bare_loop,
    ):
        say(f"{work}: warming up")
        pipeline.warm_up(setup.folder)
        workers = pipeline.processes()
        of_pipeline: Parts = {
            "producer": lambda: [os.getpid()],
            "workers": lambda: workers,
            "Celery's main process": lambda: [parent_of(workers[0])],
            "Valkey": lambda: [child_with("valkey-server")],
        }
        of_loop: Parts = {"workers": lambda: bare_loop.pids}
        if work == Work.POSTGRESQL:
            server = int((setup.home / POSTGRESQL_FOLDER / "postmaster.pid").read_text().split()[0])
            of_pipeline["PostgreSQL"] = of_loop["PostgreSQL"] = lambda: with_children(server)
        # The first pair does not count: its caches are cold.
        for number in range(rounds + 1):
            setup.settle()
            ours, our_cost = _turn(pipeline.classify, setup.folder, of_pipeline)
            setup.settle()
            theirs, their_cost = _turn(bare_loop.classify, setup.folder, of_loop)
            # In a process of its own, because this one is the producer, whose memory is measured.
            jobs = (both.pipeline, ours.job_id), (both.other, theirs.job_id)
            in_fresh_process(check_rows, *jobs, images=images)
            setup.drop_payloads()
            costs = {"pipeline": our_cost, "bare_loop": their_cost}
            one = Round(ours.seconds, ours.submit_seconds, theirs.seconds, costs)
            say(
                f"{work}: {f'round {number} of {rounds}' if number else 'not counted'}: "
                f"pipeline {images / one.pipeline:,.0f} images/s, "
                f"bare loop {images / one.bare_loop:,.0f}, efficiency {one.efficiency:.2f}"
            )
            if number:
                measured.append(one)
    return Result(work, pictures, images, setup.settings, both.facts, measured, way)


def _turn(classify: Callable[[Path], Any], folder: Path, parts: Parts) -> tuple[Any, Cost]:
    """Return what `classify` returns, and what it cost."""
    before = processor_seconds(parts)
    with_images = {part: before[part] for part in _WITH_IMAGES if part in before}
    for processes in with_images.values():
        for pid in processes:
            forget_peak(pid)
    done = classify(folder)
    time.sleep(_AFTERWARDS_SECONDS)
    after = processor_seconds(parts)
    spent = {
        part: sum(seconds - before[part].get(pid, 0.0) for pid, seconds in processes.items())
        for part, processes in after.items()
    }
    peaks = {part: max(map(peak_kib, processes)) for part, processes in with_images.items()}
    return done, Cost(spent, peaks)
