"""A job with an error limit fails when it exceeds the limit, and not before.

A limit on the number of errors is proven by the state machine in `tests/faults/test_ledger_machine.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jobs.errors import ErrorCode, UserError
from jobs.limits import ErrorLimits
from jobs.schema import ChunkState, JobState
from tests.conftest import Job, JobMaker
from tests.ledger_probes import chunk_states_of, status_of
from tests.outcomes import Outcome
from tests.threads import at_once

LimitedJobMaker = Callable[..., Job]


@pytest.fixture
def limited(make_job: JobMaker) -> LimitedJobMaker:
    """Return a function: `limited([3, 2], count=1)` makes a job with these limits and chunk sizes."""

    def limited(sizes: Sequence[int], *, sealed: bool = True, **limits: Any) -> Job:
        return make_job(sizes, sealed=sealed, error_limits=ErrorLimits(**limits))

    return limited


def outcomes(images: int, *, errors: int) -> list[Outcome]:
    """Return that many outcomes, the first of them errors."""
    return [
        Outcome(f"{number}.png", None, None, ErrorCode.CORRUPT)
        if number < errors
        else Outcome(f"{number}.png", "7", 0.75)
        for number in range(images)
    ]


# ---- a share of errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "images", "at_the_limit"),
    [
        (0.1, 1_000, 100),
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (0.57, 100, 57),
        (0.001, 3_000, 3),
        (0.05, 60, 3),
        (0.0, 10, 0),
        (1 / 3, 9, 3),
    ],
)
def test_exactly_the_share_goes_on_and_one_more_stops(ledger, limited, worker, rate, images, at_the_limit):
    # Given two jobs with this limit for the share of errors
    at, over = (limited([images, 1], rate=rate, sample=1) for _ in range(2))

    # When one is exactly at the limit, and the other one error over it
    worker.work(at.chunks[0], outcomes(images, errors=at_the_limit))
    worker.work(over.chunks[0], outcomes(images, errors=at_the_limit + 1))

    # Then the one goes on and the other is stopped
    assert status_of(ledger, at).state == JobState.RUNNING
    assert status_of(ledger, over).state == JobState.FAILED


def test_either_limit_stops(ledger, limited, worker):
    # Given jobs with both limits, each of which exceeds one
    by_count = limited([100, 1], count=3, rate=0.5, sample=10)
    by_rate = limited([100, 1], count=90, rate=0.5, sample=10)
    worker.work(by_count.chunks[0], outcomes(100, errors=4))
    worker.work(by_rate.chunks[0], outcomes(100, errors=51))

    # Then both have failed, and name that limit
    assert status_of(ledger, by_count).error == "4 of 100 images got an error, more than its limit of 3."
    assert status_of(ledger, by_rate).error == "51 of 100 images got an error, more than its limit of 50 %."


# ---- when a job fails ---------------------------------------------------------------------------------


def test_many_record_at_once_and_the_job_is_stopped_once(ledger, limited, new_worker):
    # Given eight workers with a chunk each that exceeds the limit, and two pending chunks
    job = limited([2] * 10, count=1)
    workers = [new_worker(f"worker {number}") for number in range(8)]
    claims = [worker.must_claim(chunk) for worker, chunk in zip(workers, job.chunks, strict=False)]

    def finish(number: int) -> None:
        workers[number].finish(claims[number], outcomes(2, errors=2))

    # When all record at the same moment
    at_once(finish, range(8))

    # Then the first of them stopped the job, and the outcomes of all eight are counted
    status = status_of(ledger, job)
    assert (status.state, status.failed) == (JobState.FAILED, 16)
    assert status.error == "2 of 2 images got an error, more than its limit of 1."
    assert chunk_states_of(ledger, job) == [ChunkState.DONE] * 8 + [ChunkState.DROPPED] * 2


# ---- invalid limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [{"count": -1}, {"rate": -0.01}, {"rate": 1.01}, {"rate": 5}, {"rate": math.nan}, {"sample": 0}],
    ids=str,
)
def test_what_is_no_limit_is_refused(limits):
    with pytest.raises(UserError):
        ErrorLimits(**limits)
