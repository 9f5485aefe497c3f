"""`python -m benchmarks.small_jobs`: jobs of one image per second, against one prediction per message.

All jobs are submitted while the warm workers are stopped (SIGSTOP). The clock starts when they continue, and
stops with the last row. The two sides take turns; the other one is `benchmarks.plain_worker`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import cycle, islice
from statistics import median
from typing import Annotated, Final, NamedTuple

import sqlalchemy as sa
import typer

from benchmarks.harness.check import WrongRows
from benchmarks.harness.images import list_images
from benchmarks.harness.model import make_champion
from benchmarks.harness.pipeline import Pipeline
from benchmarks.harness.processes import parent_of, standing_still, with_children
from benchmarks.harness.report import RESULTS, write_result
from benchmarks.harness.setup import PROCESSES, Json, Setup, WorkDir, prepare, run
from benchmarks.plain_worker import PlainWorker, plain_worker
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.schema import UNFINISHED, jobs, predictions
from labelmill.console.terminal import say

#: Number of files; each job takes one of them.
IMAGES: Final = 10_000

#: Seconds between two checks whether all jobs are done. The figures do not depend on it.
_LOOK_SECONDS: Final = 0.1

#: A job among so many that is not done after this time hangs.
_STANDSTILL_SECONDS: Final = 600.0

_OPEN: Final = sa.select(jobs.c.id).where(jobs.c.state.in_(UNFINISHED)).limit(1)


class Drained(NamedTuple):
    """Finished jobs, and their time."""

    jobs: int
    seconds: float  # from the moment at which the workers continue to the last row
    labels: dict[str, str | None]  # by the image's name

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.jobs / self.seconds

    def to_json(self) -> dict[str, float]:
        """Return the figures as a JSON object."""
        return {"jobs_per_second": round(self.rate, 1), "seconds": round(self.seconds, 3)}


def main(
    number: Annotated[int, typer.Option("--jobs", min=1, help="Jobs of one image.")] = 10_000,
    plain: Annotated[int, typer.Option(min=1, help="Jobs of one image for the plain worker.")] = 2_000,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 3,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure jobs of one image per second, against one message and one prediction for each."""
    with prepare(work_dir, images=IMAGES) as setup, Pipeline(setup) as pipeline:
        paths = list_images(setup.folder)
        ours, theirs = (list(islice(cycle(paths), count)) for count in (number, plain))
        other = setup.settings.model_copy(update={"ledger_url": setup.databases.other})  # the same broker
        turns = []
        with contextlib.closing(Ledger(other.ledger)) as ledger:
            make_champion(setup.model, ledger, other)
            with plain_worker(other, ledger) as worker:
                say("warming up")
                pipeline.warm_up(setup.folder)
                for turn in range(1, rounds + 1):
                    say(f"round {turn} of {rounds}: submitting {number:,} jobs")
                    turns.append(_take_turns(setup, pipeline, worker, ours, theirs))
                    drained, single = turns[-1]
                    say(f"{drained.rate:,.0f} jobs/s, one by one {single.rate:,.0f}")
    ratio = median(drained.rate / single.rate for drained, single in turns)
    say(f"{ratio:.1f} times as many jobs per second as one by one")
    measured = {
        "jobs": number,
        "plain_jobs": plain,
        "processes": PROCESSES,
        "jobs_per_second": round(median(drained.rate for drained, _ in turns), 1),
        "plain_jobs_per_second": round(median(single.rate for _, single in turns), 1),
        "ratio": round(ratio, 2),
        "rounds": [{"pipeline": drained.to_json(), "plain": single.to_json()} for drained, single in turns],
        "database": setup.databases.facts,
    }
    write_result("small-jobs", measured, json)


def _take_turns(
    setup: Setup, pipeline: Pipeline, worker: PlainWorker, ours: Sequence[str], theirs: Sequence[str]
) -> tuple[Drained, Drained]:
    """Let each side work on its jobs while the other one stands still."""
    client = pipeline.client

    def processes() -> list[int]:
        # Asked each time, because a process may have been replaced.
        return with_children(parent_of(pipeline.processes()[0]))

    def drain(ledger: Ledger, pids: Sequence[int], send: Callable[[], None]) -> Drained:
        with standing_still(pids, ledger=ledger):
            mark = new_id()  # sorts before all ids that this machine makes from now on
            time.sleep(0.002)  # ids of the same millisecond have no order
            send()
            setup.settle()
        return _wait_for_all(ledger, mark, datetime.now(UTC))

    def submit_ours() -> None:
        for path in ours:
            client.submit(path)

    with standing_still(worker.processes(), ledger=worker.ledger):
        # A process that is stopped in the middle of a task exceeds its time limit as soon as it continues,
        # and the start of a fresh process would be measured.
        pipeline.wait_until_idle()
        drained = drain(client.ledger, processes(), submit_ours)
    pipeline.wait_until_idle()
    with standing_still(processes(), ledger=client.ledger):
        single = drain(worker.ledger, worker.processes(), lambda: worker.submit(theirs))
    _check((drained, len(ours)), (single, len(theirs)))
    return drained, single


def _wait_for_all(ledger: Ledger, mark: str, began: datetime) -> Drained:
    """Wait until all jobs have ended; return what became of those after the mark.

    The ledger's times are by this machine's clock, like `began`. Raises WrongRows, and RuntimeError if the
    jobs hang.
    """
    deadline = time.monotonic() + _STANDSTILL_SECONDS
    while _are_open(ledger):
        if time.monotonic() > deadline:
            raise RuntimeError(f"there are open jobs after {_STANDSTILL_SECONDS:g} seconds")
        time.sleep(_LOOK_SECONDS)
    ends = sa.select(sa.func.count(), sa.func.max(jobs.c.finished_at))
    rows = sa.select(predictions.c.name, predictions.c.label).where(predictions.c.job_id > mark)
    with ledger.reading() as connection:
        number, last = connection.execute(ends.where(jobs.c.id > mark)).one()
        found = connection.execute(rows).all()
    if len(found) != number:
        raise WrongRows(f"{len(found):,} rows for {number:,} jobs of one image")
    labels = {row.name: row.label for row in found}
    return Drained(number, (last - began).total_seconds(), labels)


def _are_open(ledger: Ledger) -> bool:
    with ledger.reading() as connection:
        return connection.scalar(_OPEN) is not None


def _check(*expected: tuple[Drained, int]) -> None:
    """Check that there are so many jobs each, and one label for each image. Raises WrongRows."""
    known: dict[str, str | None] = {}
    for one, number in expected:
        if one.jobs != number or None in one.labels.values():
            raise WrongRows(f"{one.jobs:,} jobs instead of {number:,}, or some without a label")
        different = [name for name, label in one.labels.items() if known.get(name, label) != label]
        if different:
            raise WrongRows(f"{len(different)} images got two labels: {different[:3]}")
        known |= one.labels


if __name__ == "__main__":
    run(main)
