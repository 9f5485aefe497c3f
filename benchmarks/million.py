"""`python -m benchmarks.million`: check that a million images take no more time or memory per image.

It takes turns with a job of 70,000 on the same stack: before it, and after it. The producer has a process of
its own each time; of the workers' memory what they had in use before is forgotten first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Final, NamedTuple

import typer

from benchmarks.databases import Databases, Work, databases
from benchmarks.images import ALL_DIGITS
from benchmarks.model import TrainedModel
from benchmarks.pipeline import Pipeline
from benchmarks.processes import forget_peak, parent_of, peak_kib
from benchmarks.producer import Producer
from benchmarks.report import write_measured
from benchmarks.setup import (
    PROCESSES,
    RESULTS,
    Json,
    Processes,
    WorkDir,
    Works,
    prepare,
    run,
    settings_in,
    settle,
    short_folder,
)
from labelmill.console.terminal import report_errors, say

#: The turns, in order.
_TURNS: Final = ("small", "large", "small")


class Turn(NamedTuple):
    """One job."""

    images: int
    seconds: float  # from the first file that is looked for to the last row
    submit_seconds: float
    peak_kib: dict[str, int]  # of each process

    @property
    def microseconds(self) -> float:
        """Microseconds per image."""
        return 1e6 * self.seconds / self.images


@report_errors
def main(
    works: Works = None,
    images: Annotated[int, typer.Option(min=1, help="Images of the large job.")] = 1_000_000,
    small: Annotated[
        int,
        typer.Option(min=1, max=ALL_DIGITS, help="Images of the small one, and files there are."),
    ] = ALL_DIGITS,
    processes: Processes = PROCESSES,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Run a large job between two smaller ones; compare time per image and memory."""
    load_average = os.getloadavg()[0]
    model, folder = prepare(work_dir, images=small)
    measured = {}
    for work in works or list(Work):
        measured[str(work)] = found = _measure(work, model, folder, small, images, processes)
        say(f"{work}: time per image {_percent(found['time_growth_percent'])}")
        for name, growth in found["memory_growth_percent"].items():
            say(f"{work}: memory of {name} {_percent(growth)}")
    facts = {"images": images, "small_images": small, "processes": processes}
    say(f"written to {write_measured('million', facts | measured, json, load_average)}")


def _measure(
    work: Work, model: TrainedModel, folder: Path, small: int, large: int, processes: int
) -> dict[str, Any]:
    with short_folder() as home, databases(work, home) as both:
        settings = settings_in(home, both.pipeline, processes)
        with Pipeline(settings, model) as pipeline, Producer(settings, folder) as producer:
            say(f"{work}: warming up")
            pipeline.warm_up(folder)
            turns = []
            for size in _TURNS:
                turn = _take(pipeline, producer, both, large if size == "large" else small)
                memory = ", ".join(f"{name} {kib / 1024:,.0f} MiB" for name, kib in turn.peak_kib.items())
                say(f"{work}: {turn.images:,} images, {turn.microseconds:.1f} µs each; {memory}")
                turns.append(turn)
    before, there, after = turns
    return {
        "time_growth_percent": _growth(there.microseconds, mean([before.microseconds, after.microseconds])),
        "memory_growth_percent": {
            name: _growth(peak, before.peak_kib[name]) for name, peak in there.peak_kib.items()
        },
        "turns": [turn._asdict() | {"microseconds_per_image": round(turn.microseconds, 2)} for turn in turns],
        "database": both.facts,
    }


def _take(pipeline: Pipeline, producer: Producer, both: Databases, images: int) -> Turn:
    """Run one job; return its time, and each process's peak memory.

    Raises RuntimeError, or what the producer does.
    """
    settle(both.settle)
    pids = _named(pipeline.processes())
    for pid in pids.values():
        forget_peak(pid)
    submission = producer.submit(images).result()
    done = pipeline.wait(submission.job_id, began=submission.began, submitted=submission.submitted)
    status = pipeline.client.status(submission.job_id)
    if status.succeeded != images:
        raise RuntimeError(f"{status.succeeded:,} of {images:,} images have a label")
    peaks = {name: peak_kib(pid) for name, pid in pids.items()}
    return Turn(images, done.seconds, done.submit_seconds, {"the producer": submission.peak_kib} | peaks)


def _named(workers: Sequence[int]) -> dict[str, int]:
    """Return the processes that classify, and the one that started them, by name."""
    named = {f"worker process {number}": pid for number, pid in enumerate(workers, 1)}
    return named | {"the workers' parent": parent_of(workers[0])}


def _growth(there: float, before: float) -> float:
    """Return the growth in per cent; 0 means none."""
    return round(100 * (there / before - 1), 2)


def _percent(growth: float) -> str:
    return f"{growth:+.1f} %"


if __name__ == "__main__":
    run(main)
