"""A worker that stands still beyond its lease and then goes on: somebody else has its chunk by now."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.console import until
from tests.faults.mill import HEALED_SECONDS, Mill
from tests.faults.pictures import pictures
from tests.faults.plan import Rule
from tests.faults.trials import Matrix


@contextmanager
def another_worker(mill: Mill) -> Iterator[None]:
    """One more, of one process, until the end."""
    worker = mill.add_worker("other", processes=1)
    try:
        yield
    finally:
        mill.remove_worker(worker, signal.SIGKILL)


@pytest.fixture
def crowded_mills(mills: list[Mill]) -> Iterator[list[Mill]]:
    """Three workers each, so that one goes on when two stand still."""
    more = [(mill, mill.add_worker(f"more{number}", processes=1)) for mill in mills for number in range(2)]
    yield mills
    for mill, worker in more:
        mill.remove_worker(worker, signal.SIGKILL)


def test_a_zombie_that_finishes_late_records_nothing(crowded_mills: list[Mill], matrix: Matrix) -> None:
    with matrix.trials("SIGSTOP beyond the lease, then CONT", "I2", short=8, long=50) as trials:
        images = pictures(800)
        late = 0
        while late < trials.wanted:
            # given two workers that stand still with their outcomes computed and not recorded
            jobs = []
            with ExitStack() as stack:
                for mill in crowded_mills:
                    stack.callback(_wake_all, mill)
                    mill.plan.set(Rule("after predict", "stop both", times=2, every=9))
                    jobs.append(mill.submit(images, chunk_images=20))

                # when the others have done their chunks in their place, and they go on
                for mill, job in zip(crowded_mills, jobs, strict=True):
                    mill.wait(job)
                    zombies = {event["pid"] for event in mill.plan.events("stop both")}
                    assert zombies
                    for pid in zombies:
                        os.kill(pid, signal.SIGCONT)
                    until(
                        lambda mill=mill, zombies=zombies: _too_late(mill) >= zombies,
                        "each has found out",
                        seconds=HEALED_SECONDS,
                    )

                    # then they have recorded nothing: the rows are as if they had never been
                    late += len(zombies)
                    trials.ran(len(zombies), mill.judge(job, images))


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
    postgresql_mill: Mill, matrix: Matrix, where: str, seam: str
) -> None:
    mill = postgresql_mill
    with (
        matrix.trials(f"SIGSTOP in {where}, PostgreSQL", "I1-I3", short=1, long=10) as trials,
        another_worker(mill),
    ):
        for _ in range(trials.wanted):
            # given a worker that stands still while it records
            mill.plan.set(Rule(seam, "stop both", times=1, every=5))
            images = pictures(400)
            job = mill.submit(images, chunk_images=20)
            with ExitStack() as stack:
                stack.callback(_wake_all, mill)

                # when nobody wakes it, then the job ends all the same
                verdict = mill.judge(job, images)
                assert mill.plan.events("stop both")
                trials.ran(1, verdict)


@pytest.mark.parametrize("seam", ["COPY", "before COMMIT"])
def test_a_child_that_stands_still_while_recording_does_not_stop_its_worker(
    postgresql_mill: Mill, matrix: Matrix, seam: str
) -> None:
    with matrix.trials(f"SIGSTOP of a child, {seam}, PostgreSQL", "I1-I4", short=1, long=10) as trials:
        mill = postgresql_mill
        for _ in range(trials.wanted):
            # given a worker, the only one, of which one process stands still with rows locked
            mill.plan.set(Rule(seam, "stop child", times=1, every=3))
            images = pictures(200)
            job = mill.submit(images, chunk_images=20)

            # when its time is up, then it is killed, and the job ends: the main process, which writes down
            # that it died, does not wait for what it has locked
            verdict = mill.judge(job, images)
            assert mill.plan.events("stop child")
            trials.ran(1, verdict)


def _too_late(mill: Mill) -> set[int]:
    """The processes that wanted to record and learnt that they own the chunk no more."""
    return {event["pid"] for event in mill.plan.events("lease lost")}


def _wake_all(mill: Mill) -> None:
    for zombie in mill.plan.events("stop both"):
        for pid in (zombie["pid"], zombie["parent"]):
            with suppress(ProcessLookupError):  # its parent woke first, and saw its time was up
                os.kill(pid, signal.SIGCONT)
