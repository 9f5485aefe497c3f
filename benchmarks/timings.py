"""What each stage of the pipeline costs, as its only worker process counts it: microseconds per image."""

from __future__ import annotations

import os
from typing import Final

from rich.table import Table

from benchmarks.harness.pipeline import Pipeline
from benchmarks.harness.processes import processor_seconds
from benchmarks.harness.setup import Setup
from jobs.ledger.counters import CounterName, totals
from labelmill.console.terminal import Console

#: How many images are classified, and how often. The fastest pass of each stage counts, because other
#: programs on the machine only add to it.
PROFILE_IMAGES: Final = 10_000
PASSES: Final = 5


def print_timings(setup: Setup, images: int) -> None:
    """Classify the images, which must be all in the folder, and print one row per stage."""
    with Pipeline(setup) as pipeline:
        pipeline.warm_up(setup.folder)
        passes = [_one_pass(pipeline, setup) for _ in range(PASSES)]
    table = Table(title="µs per image")
    table.add_column("stage")
    table.add_column("µs", justify="right")
    for name in passes[0]:
        table.add_row(name, f"{1e6 * min(one[name] for one in passes) / images:.1f}")
    Console(highlight=False).print(table)


def _one_pass(pipeline: Pipeline, setup: Setup) -> dict[str, float]:
    """Return the producer's seconds on a core, and the worker's seconds in each stage."""
    setup.settle()
    before = _seconds(pipeline)
    pipeline.classify(setup.folder)
    after = _seconds(pipeline)
    setup.drop_payloads()
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def _seconds(pipeline: Pipeline) -> dict[str, float]:
    producer = processor_seconds({"producer": lambda: [os.getpid()]})["producer"]
    with pipeline.client.ledger.reading() as connection:
        found = totals(connection)
    stages = {
        f"worker: {label}": value
        for (name, label), value in found.items()
        if name == CounterName.STAGE_SECONDS
    }
    return {"producer": sum(producer.values())} | stages
