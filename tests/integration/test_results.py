"""A chunk's results are recorded whole or not at all, once, and by its owner; the last ones end the job.

Whatever happens one step at a time is proven by the state machine in `tests/faults/test_ledger_machine.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import sqlalchemy as sa

from jobs.errors import ErrorCode, LeaseLost, LedgerFull, Stopped, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import page_of_predictions
from jobs.ledger.jobs.results import Classified, record_results
from jobs.ledger.jobs.submission import seal_job
from jobs.schema import JobState, predictions
from tests.ledger_probes import status_of
from tests.outcomes import Outcome, best, to_columns
from tests.threads import at_once

EVERYTHING = Filter()


def counters_of(ledger: Ledger, job) -> tuple[JobState, int, int, int]:
    status = status_of(ledger, job)
    return status.state, status.total, status.succeeded, status.failed


def predictions_of(ledger: Ledger, job) -> list[Prediction]:
    with ledger.reading() as connection:
        return page_of_predictions(connection, job.id, EVERYTHING, after=-1, limit=10_000)


def seal(ledger: Ledger, job) -> None:
    with ledger.transaction() as connection:
        seal_job(connection, job.id, fingerprint=None)


def sevens(*names: str) -> list[Outcome]:
    return [Outcome(name, "7", 0.75) for name in names]


# ---- what is recorded ---------------------------------------------------------------------------------


def test_alternatives_are_recorded_beside_images_and_jobs_without_any(ledger, make_job, worker):
    # Given a job with alternatives, whose second image cannot be read, and a job that did not ask for any
    asked, other = make_job([2]), make_job([1])
    outcomes = [
        Outcome("a.png", "été", 0.5, alternatives=best("été", '"quoted"', "\\")),
        Outcome("b.png", None, None, ErrorCode.CORRUPT),
    ]
    claims = worker.claim_next()
    assert len(claims) == 2

    # When they are recorded together
    by_job = {asked.id: to_columns(outcomes), other.id: to_columns(sevens("c.png"))}
    with ledger.transaction() as connection:
        record_results(connection, [Classified(claim, by_job[claim.job_id]) for claim in claims])

    # Then just the image with a label has its alternatives, as they were
    found = [each.alternatives for job in (asked, other) for each in predictions_of(ledger, job)]
    assert found == [outcomes[0].alternatives, None, None]
    with ledger.reading() as connection:
        is_null = sa.select(predictions.c.name).where(predictions.c.alternatives.is_(sa.null()))
        assert set(connection.scalars(is_null)) == {"b.png", "c.png"}


#: Names that COPY's text format, SQL quoting or a terminal might misread.
AWKWARD_NAMES = [
    "a b.png",
    "two\nlines.png",
    "carriage\rreturn.png",
    "tab\tstop.png",
    "back\\slash.png",
    r"\N",
    r"\.",
    "\\",
    r"\n\t\\x41",
    'it\'s "quoted".png',
    "semi;colon,comma.png",
    "%s %d %% {} ?.png",
    ":name",
    "手書き数字/七.png",
    "🖋️ café.png",
    "\x01\x1b[31m\x7f.png",
    "",
    " ",
    "x" * 1_000_000,
]


def test_a_name_comes_back_as_it_was(ledger, make_job, worker):
    # Given images with awkward names, and labels and details that are as awkward
    labelled = [Outcome(name, name, 0.5) for name in AWKWARD_NAMES]
    failed = [Outcome(name, None, None, ErrorCode.CORRUPT, name) for name in AWKWARD_NAMES]
    job = make_job([len(AWKWARD_NAMES)] * 2)

    # When they are recorded
    worker.work(job.chunks[0], labelled)
    worker.work(job.chunks[1], failed)

    # Then every character is unchanged
    found = predictions_of(ledger, job)
    assert [outcome.name for outcome in found] == AWKWARD_NAMES * 2
    assert [outcome.label for outcome in found] == AWKWARD_NAMES + [None] * len(AWKWARD_NAMES)
    assert [outcome.detail for outcome in found] == [None] * len(AWKWARD_NAMES) + AWKWARD_NAMES


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_chunk_is_recorded_whole_or_not_at_all(ledger, make_job, worker, count):
    # Given a claim on three images
    job = make_job([3])
    claim = worker.must_claim(job.chunks[0])

    # When there are too few or too many outcomes
    with pytest.raises(ValueError, match="outcomes for a chunk of 3"):
        worker.finish(claim, sevens(*["x"] * count))

    # Then nothing has changed, and the right number is accepted
    assert counters_of(ledger, job) == (JobState.RUNNING, 3, 0, 0)
    worker.finish(claim)
    assert counters_of(ledger, job) == (JobState.DONE, 3, 3, 0)


# ---- the fence ----------------------------------------------------------------------------------------


def test_two_finish_the_same_chunk_at_the_same_moment(ledger, make_job, new_worker):
    # Given 10 chunks, each of which two workers try to record
    job = make_job([3] * 10)
    slow, other = new_worker("anna"), new_worker("ben")
    lost = [slow.must_claim(chunk, lease_seconds=-1) for chunk in job.chunks]
    held = [other.must_claim(chunk) for chunk in job.chunks]

    def finish_all(who):
        worker, claims = who
        refused = 0
        for claim in claims:
            try:
                worker.finish(claim)
            except LeaseLost:
                refused += 1
        return refused

    # When both record at the same time
    refused = at_once(finish_all, [(slow, lost), (other, held)])

    # Then the owner's results are recorded once, and the other's are all refused
    assert refused == [10, 0]
    assert counters_of(ledger, job) == (JobState.DONE, 30, 30, 0)


# ---- when a job is done -------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", range(3))
def test_whoever_comes_last_the_job_is_done(ledger, make_job, new_worker, trial):  # noqa: ARG001 -- a repeat
    # Given a job of 12 chunks that is about to be sealed, and four workers with three claims each
    job = make_job([2] * 12, sealed=False)
    workers = [new_worker(f"worker {number}") for number in range(4)]
    claims = [worker.must_claim(chunk) for chunk, worker in zip(job.chunks, workers * 3, strict=True)]

    def finish_mine(number):
        for claim in claims[number::4]:
            workers[number].finish(claim)

    # When all of it happens at once
    steps = [partial(seal, ledger, job), *(partial(finish_mine, number) for number in range(4))]
    at_once(lambda step: step(), steps)

    # Then the job is done, and every image was counted once
    assert counters_of(ledger, job) == (JobState.DONE, 24, 24, 0)
    assert len(predictions_of(ledger, job)) == 24


def test_a_job_is_sealed_once(ledger, make_job):
    job = make_job([1])
    with pytest.raises(Stopped):
        seal(ledger, job)


# ---- a database that fails ----------------------------------------------------------------------------


class Interrupted(list[str | None]):
    """A column of outcomes during whose iteration `happens` is called."""

    def __init__(self, column, happens):
        super().__init__(column)
        self._happens = happens

    def __iter__(self):
        for place, value in enumerate(super().__iter__()):
            if place == 1:
                self._happens()
            yield value


def interrupted(outcomes, happens):
    found = to_columns(outcomes)
    return replace(found, label=Interrupted(found.label, happens))


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("times_out", [False, True], ids=["the connection breaks", "a time limit is reached"])
def test_a_database_that_fails_among_the_rows_is_a_service_that_is_down(
    ledger, make_job, worker, postgresql_server, times_out
):
    # Given a claim, and a database that ends the connection, or the statement, while the rows are sent
    job = make_job([2])
    claim = worker.must_claim(job.chunks[0])

    def record():
        with worker.ledger.transaction() as connection:
            pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
            end_it = f"SELECT pg_terminate_backend({pid}, 5000)"
            if times_out:
                connection.exec_driver_sql("SET LOCAL statement_timeout = '20ms'")
                end_it = "SELECT pg_sleep(0.1)"
            outcomes = interrupted(sevens("a", "b"), lambda: postgresql_server.execute(end_it))
            record_results(connection, [Classified(claim, outcomes)])

    # When the outcomes are recorded, Then the error is Unavailable
    with pytest.raises(Unavailable):
        record()

    # And nothing is stored, and a second attempt records it once
    assert counters_of(ledger, job) == (JobState.RUNNING, 2, 0, 0)
    worker.finish(claim)
    assert counters_of(ledger, job) == (JobState.DONE, 2, 2, 0)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_disk_that_is_full_is_a_service_that_is_down(ledger, make_job, worker):
    # Given a claim on many images, and a database that may not grow
    job = make_job([5_000])
    claim = worker.must_claim(job.chunks[0])

    def record():
        with worker.ledger.transaction() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            record_results(
                connection, [Classified(claim, to_columns(sevens(*["a rather long name.png"] * 5_000)))]
            )

    # When the outcomes are recorded, Then the error says so
    with pytest.raises(LedgerFull, match="The ledger's disk is full"):
        record()

    # And nothing is stored
    assert counters_of(ledger, job) == (JobState.RUNNING, 5_000, 0, 0)


def test_a_name_that_no_database_takes_is_stored_as_one_that_it_does(ledger, make_job, worker):
    # Given names and a detail with characters that PostgreSQL cannot store
    job = make_job([3])
    outcomes = [*sevens("nul\0.png", "\udcff.png"), Outcome("c.png", None, None, "corrupt", "bad \0 byte")]

    # When they are recorded, Then the chunk is done, with the characters replaced or escaped
    worker.work(job.chunks[0], outcomes)
    found = predictions_of(ledger, job)
    assert [prediction.name for prediction in found] == ["nul\ufffd.png", "\\xff.png", "c.png"]
    assert found[2].detail == "bad \ufffd byte"
