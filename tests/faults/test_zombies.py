"""A worker that stands still beyond its lease and then goes on: somebody else has its chunk by now."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.console import until
from tests.faults.harness import HEALED_SECONDS, Harness
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix


@pytest.fixture
def crowded_harnesses(harnesses: list[Harness]) -> Iterator[list[Harness]]:
    """Three workers each, so that one goes on when two stand still."""
    more = [
        (harness, harness.add_worker(f"more{number}", processes=1))
        for harness in harnesses
        for number in range(2)
    ]
    yield harnesses
    for harness, worker in more:
        harness.remove_worker(worker, signal.SIGKILL)


def test_a_zombie_that_finishes_late_records_nothing(
    crowded_harnesses: list[Harness], matrix: Matrix
) -> None:
    with matrix.trials("SIGSTOP beyond the lease, then CONT", "I2", short=8, long=50) as trials:
        images = pictures(800)
        late = 0
        while late < trials.wanted:
            # given two workers that stand still with their outcomes computed and not recorded
            jobs = []
            with ExitStack() as stack:
                for harness in crowded_harnesses:
                    stack.callback(_wake_all, harness)
                    harness.plan.set(Rule("after predict", "stop both", times=2, every=9))
                    jobs.append(harness.submit(images, chunk_images=20))

                # when the others have done their chunks in their place, and they go on
                for harness, job in zip(crowded_harnesses, jobs, strict=True):
                    harness.wait(job)
                    zombies = {event["pid"] for event in harness.plan.events("stop both")}
                    assert zombies
                    for pid in zombies:
                        os.kill(pid, signal.SIGCONT)
                    until(
                        lambda harness=harness, zombies=zombies: _too_late(harness) >= zombies,
                        "each has found out",
                        seconds=HEALED_SECONDS,
                    )

                    # then they have recorded nothing: the rows are as if they had never been
                    late += len(zombies)
                    trials.ran(len(zombies), harness.judge(job, images))


@pytest.mark.parametrize(
    ("where", "seam"),
    [
        # Its outcomes are written and not committed: it has its job's row locked, which all others need.
        ("mid-transaction", "before COMMIT"),
        # PostgreSQL waits for its next row and heeds none of its timeouts: it has its chunk's row
        # locked, which whoever takes over needs.
        ("mid-COPY", "COPY"),
    ],
)
def test_a_standstill_while_recording_holds_nobody_up_for_long(
    crowded_harnesses: list[Harness], matrix: Matrix, where: str, seam: str
) -> None:
    [_, harness] = crowded_harnesses
    with matrix.trials(f"SIGSTOP in {where}, PostgreSQL", "I1-I3", short=1, long=10) as trials:
        for _ in range(trials.wanted):
            # given a worker that stands still while it records
            harness.plan.set(Rule(seam, "stop both", times=1, every=5))
            images = pictures(400)
            job = harness.submit(images, chunk_images=20)
            with ExitStack() as stack:
                stack.callback(_wake_all, harness)

                # when nobody wakes it, then the job ends all the same
                verdict = harness.judge(job, images)
                assert harness.plan.events("stop both")
                trials.ran(1, verdict)


def _too_late(harness: Harness) -> set[int]:
    """The processes that wanted to record and learnt that they own the chunk no more."""
    return {event["pid"] for event in harness.plan.events("lease lost")}


def _wake_all(harness: Harness) -> None:
    for zombie in harness.plan.events("stop both"):
        for pid in (zombie["pid"], zombie["parent"]):
            with suppress(ProcessLookupError):  # its parent woke first, and saw its time was up
                os.kill(pid, signal.SIGCONT)
