"""Job status, lists of jobs and pages of predictions are the same on both databases."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from jobs.errors import Conflict, ErrorCode, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs import queries as progress
from jobs.ledger.jobs.control import end_job, pause_job
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import job_status, latest_jobs, page_of_predictions, stream_predictions
from jobs.schema import JobState, db_now, jobs, predictions
from labelmill.client import Client
from labelmill.commands.predictions import app as predictions_command
from tests.ledger_probes import status_of
from tests.outcomes import Outcome

EVERYTHING = Filter()


def latest(ledger: Ledger, limit: int = 100, state: JobState | None = None) -> list[str]:
    with ledger.reading() as connection:
        return [status.id for status in latest_jobs(connection, limit=limit, state=state)]


def page(ledger: Ledger, job, wanted: Filter = EVERYTHING, after: int = -1, limit: int = 100):
    with ledger.reading() as connection:
        return page_of_predictions(connection, job.id, wanted, after=after, limit=limit)


def indices(found: Sequence[Prediction]) -> list[int]:
    return [prediction.index for prediction in found]


# ---- jobs ---------------------------------------------------------------------------------------------


def test_a_fresh_job_has_no_rate_yet_and_waits(ledger, make_job, champion):
    # Given a job that nobody has started
    job = make_job([3, 2], key="mine")
    time.sleep(0.02)
    status = status_of(ledger, job)

    # Then its status has everything that is known
    assert (status.id, status.state, status.model, status.key) == (
        job.id,
        JobState.RUNNING,
        champion.id,
        "mine",
    )
    assert (status.total, status.done, status.succeeded, status.failed) == (5, 0, 0, 0)
    assert (status.started_at, status.finished_at, status.rate, status.eta_seconds) == (None,) * 4
    assert not status.finished

    # And the time for which its first chunk has been pending, by the database's clock
    assert 0.01 <= status.oldest_waiting_seconds < 30


def test_a_job_at_work_has_a_rate_and_an_end(ledger, make_job, worker):
    # Given a job of which 20 of 50 images are done after a while
    job = make_job([20, 30])
    worker.work(job.chunks[0])
    time.sleep(0.05)
    status = status_of(ledger, job)

    # Then the remaining images are expected to take as long per image
    seconds = (status.read_at - status.started_at).total_seconds()
    assert seconds > 0.04
    assert status.rate == pytest.approx(20 / seconds)
    assert status.eta_seconds == pytest.approx(30 * seconds / 20)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_job_that_is_received_or_paused_has_a_rate_and_no_end(ledger, make_job, worker, sealed):
    # Given a job that is still being submitted, or paused, with all but 3 of its images so far done
    job = make_job([20, 3], sealed=sealed)
    worker.work(job.chunks[0])
    if sealed:
        with ledger.transaction() as connection:
            assert pause_job(connection, job.id)
    time.sleep(0.02)
    status = status_of(ledger, job)

    # Then no end is predicted, because more images will come, or nobody works on it
    assert (status.state, status.paused) == (JobState.RUNNING if sealed else JobState.RECEIVING, sealed)
    assert status.rate is not None
    assert status.eta_seconds is None


def test_a_job_that_is_done_waits_for_nothing(ledger, make_job, worker):
    # Given a finished job
    job = make_job([2])
    worker.work(job.chunks[0])
    before = status_of(ledger, job)
    time.sleep(0.02)
    after = status_of(ledger, job)

    # Then it is finished, its times are in order, its rate does not change, and nothing is pending
    times = [after.created_at, after.submitted_at, after.started_at, after.finished_at, after.read_at]
    assert times == sorted(times)
    assert after.finished
    assert after.rate == before.rate
    assert (after.eta_seconds, after.oldest_waiting_at, after.oldest_waiting_seconds) == (None, None, None)


def test_the_oldest_waiting_chunk_is_the_first_that_nobody_has(ledger, make_job, worker):
    # Given two chunks, the first of which is claimed
    job = make_job([1, 1], sealed=False)
    first = status_of(ledger, job).oldest_waiting_at
    claim = worker.must_claim(job.chunks[0])

    # Then the second is the oldest pending one
    second = status_of(ledger, job).oldest_waiting_at
    assert second >= first

    # And when the first is released, its time counts from its creation
    worker.release(claim)
    assert status_of(ledger, job).oldest_waiting_at == first


def test_jobs_are_listed_newest_first(ledger, make_job, worker):
    # Given five jobs created one after the other: one done, one cancelled, the others running
    made = [make_job([1]) for _ in range(5)]
    with ledger.transaction() as connection:
        for age, job in enumerate(reversed(made)):
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(created_at=db_now(-60 * age)))
        end_job(connection, made[3].id, JobState.CANCELLED)
    worker.work(made[1].chunks[0])
    ids = [job.id for job in made]

    # Then the latest come first, filtered by state, up to the limit
    assert latest(ledger) == ids[::-1]
    assert latest(ledger, limit=2) == [ids[4], ids[3]]
    assert latest(ledger, state=JobState.RUNNING) == [ids[4], ids[2], ids[0]]
    assert latest(ledger, state=JobState.DONE) == [ids[1]]
    assert latest(ledger, state=JobState.FAILED) == []


def test_a_listed_job_is_the_job_itself(ledger, make_job):
    job = make_job([2, 3])
    with ledger.reading() as connection:
        [listed] = latest_jobs(connection, limit=1)
        alone = job_status(connection, job.id)
    assert replace(listed, read_at=alone.read_at) == alone


# ---- predictions --------------------------------------------------------------------------------------


@pytest.fixture
def mixed(make_job, worker):
    """Return a job of ten images: 0 to 3 are ones, 4 to 7 sevens, less and less sure; 8 and 9 have errors."""
    job = make_job([6, 4])
    outcomes = [Outcome(f"{n}.png", "1" if n < 4 else "7", 1 - n / 10) for n in range(8)]
    outcomes += [
        Outcome("8.png", None, None, ErrorCode.CORRUPT, "cut off"),
        Outcome("9.png", None, None, ErrorCode.UNIDENTIFIED),
    ]
    worker.work(job.chunks[1], outcomes[6:])
    worker.work(job.chunks[0], outcomes[:6])
    return job


def test_pages_follow_each_other_by_the_last_index_seen(ledger, mixed):
    assert indices(page(ledger, mixed)) == list(range(10))
    assert indices(page(ledger, mixed, limit=4)) == [0, 1, 2, 3]
    assert indices(page(ledger, mixed, after=3, limit=4)) == [4, 5, 6, 7]
    assert indices(page(ledger, mixed, after=7, limit=4)) == [8, 9]
    assert page(ledger, mixed, after=9) == []


def test_an_error_code_of_a_newer_worker_is_read_as_it_is(ledger, mixed):
    with ledger.transaction() as connection:
        connection.execute(predictions.update().where(predictions.c.index == 9).values(error="from_tomorrow"))
    assert page(ledger, mixed, Filter(errors=True))[1].error == "from_tomorrow"


def test_filters_hold_together(ledger, mixed):
    expected = {
        Filter(label="7"): [4, 5, 6, 7],
        Filter(label="2"): [],
        Filter(label="%"): [],
        Filter(below=0.55): [5, 6, 7],
        Filter(below=0.0): [],
        Filter(errors=True): [8, 9],
        Filter(name="[0-4].png"): [0, 1, 2, 3, 4],
        Filter(label="7", below=0.45): [6, 7],
        Filter(label="7", errors=True): [],
        Filter(below=0.55, name="[!6]*"): [5, 7],
        Filter(errors=True, name="*9*"): [9],
    }
    assert {wanted: indices(page(ledger, mixed, wanted)) for wanted in expected} == expected


def below(ledger: Ledger, make_job, worker, confidence: float) -> list[int]:
    """Return which of three images are below this confidence: one exactly at it, one just under, one over."""
    job = make_job([3])
    confidences = (confidence, confidence - 1e-6, confidence + 1e-6)
    worker.work(job.chunks[0], [Outcome(f"{value}", "1", value) for value in confidences])
    return indices(page(ledger, job, Filter(below=confidence)))


def test_a_confidence_just_as_asked_is_not_below(ledger, make_job, worker):
    # The nearest float32 to 0.6 is a little above it, and to 0.7 a little below
    for confidence in (0.5, 0.6, 0.7):
        assert below(ledger, make_job, worker, confidence) == [1]


# ---- streams ------------------------------------------------------------------------------------------


#: Page sizes with which a page ends before, with, and after the last of ten rows.
PAGE_SIZES = [1, 3, 5, 10, 11]


def test_a_stream_has_every_row_once_whatever_its_pages(ledger, mixed, monkeypatch):
    for rows in PAGE_SIZES:
        monkeypatch.setattr(progress, "PAGE_ROWS", rows)
        assert indices(list(stream_predictions(ledger, mixed.id, EVERYTHING))) == list(range(10))
        assert indices(list(stream_predictions(ledger, mixed.id, Filter(label="7")))) == [4, 5, 6, 7]
        assert indices(list(stream_predictions(ledger, mixed.id, EVERYTHING, after=6))) == [7, 8, 9]
        assert list(stream_predictions(ledger, mixed.id, Filter(label="2"))) == []


def test_a_stream_ends_at_its_limit(ledger, mixed, monkeypatch):
    for rows in PAGE_SIZES:
        monkeypatch.setattr(progress, "PAGE_ROWS", rows)
        for limit in (0, 1, 3, 4, 9, 10, 11):
            found = list(stream_predictions(ledger, mixed.id, EVERYTHING, limit=limit))
            assert indices(found) == list(range(10))[:limit]


def test_a_stream_holds_no_transaction_while_its_reader_thinks(ledger, mixed, monkeypatch, make_job):
    # Given a stream of which one page has been read
    monkeypatch.setattr(progress, "PAGE_ROWS", 3)
    stream = stream_predictions(ledger, mixed.id, EVERYTHING)
    next(stream)

    # When its reader pauses, Then no connection is in use
    assert ledger.engine.pool.checkedout() == 0

    # And others can write, and then the stream goes on
    make_job([1])
    assert indices(list(stream)) == list(range(1, 10))


# ---- globs --------------------------------------------------------------------------------------------

NAMES = [
    *("a.png", "b.png", "A.png", "dir/a.png", "dir/sub/a.png", "a.pngx", "xpng", "", "\n", "a\nb.png"),
    *("a+b.png", "a(b).png", "{2}", "a$b", "^a", "a|b", "#", "a b", "[]", "a[b.png", "a]b", "a\\b", "\\d"),
    *("a%b", "a_b", "%", "_", "a!b", "a^b", "a-b", "5", "d", "é.png", "七.png", "*", "?"),
]

PLAIN_GLOBS = [
    *("*", "*.png", "?.png", "a*", "a.png", "A*", "dir/*", "*/*.png", "**", "a**b*", "", "nothing"),
    *("*\n*", "a?b.png", "a?b", "???", "é*", "[é-七].png"),
    # characters with a meaning in regular expressions or in LIKE
    *("a+b*", "a(b)*", "{2}", "a{1}", "a$b", "^a", "a|b", "#", "a b", "\\d", "a\\b", "*.", "xpn.", "a.b"),
    *("a%b", "%", "_", "a_b", "%.png", "_.png"),
    # sets
    *("[ab].png", "[!a].png", "[^a].png", "[a-c]*", "*[.]png", "[*]", "[?]", "a[!x]b", "[0-9]"),
    *("[]]", "a[]]b", "[\\d]", "a[\\]b", "a[-x]b", "a[x-]b", "[a!]*", "a[!^]b", "a[x^]b", "a]b", "*]*"),
]

#: Unclosed, empty, negated-] and reversed sets, and sets that look like POSIX classes.
BROKEN_GLOBS = [
    *("a[b*", "[]", "[!]", "[!]]", "a[^]b", "[z-a]", "[[:alpha:]]*", "[[!]*", "[[.a.]].png"),
    *("[a-c-]*", "[-^]*", "[]^]*", "[*-?]", "[a-]*", "[!a-]*", "[[-]]*", "[", "*[", "[[]*"),
]


@pytest.fixture
def named(make_job, worker):
    job = make_job([len(NAMES)])
    worker.work(job.chunks[0], [Outcome(name, "1", 0.5) for name in NAMES])
    return job


def expected_of(glob: str) -> list[str]:
    """Return the names that Python's fnmatch matches, as a shell would; fnmatch writes `[^` as `[!`."""
    pattern = glob.replace("[^", "[!")
    return [name for name in NAMES if fnmatch.fnmatchcase(name, pattern)]


def names_found(ledger: Ledger, job, glob: str) -> list[str]:
    return [prediction.name for prediction in page(ledger, job, Filter(name=glob))]


@pytest.mark.parametrize("globs", [PLAIN_GLOBS, BROKEN_GLOBS], ids=["plain", "broken"])
def test_a_glob_finds_what_a_shell_would(ledger, named, globs):
    found = {glob: names_found(ledger, named, glob) for glob in globs}
    assert found == {glob: expected_of(glob) for glob in globs}


def test_a_glob_of_many_stars_takes_linear_time(ledger, make_job, worker):
    # Given a long name that a glob matches up to its last character
    job = make_job([1])
    worker.work(job.chunks[0], [Outcome("a" * 4000, "1", 0.5)])

    # When it is matched, then not every combination of the stars is tried: Python's `re` takes a minute
    started = time.monotonic()
    for glob in ("*a*a*ab", "*a" * 127 + "b", "*a?" * 85 + "b", "*" + "[ab]" * 60 + "c"):
        assert names_found(ledger, job, glob) == []
        assert time.monotonic() - started < 10

    # And a glob that is too long is refused
    assert len(names_found(ledger, job, "*" * 256)) == 1
    with pytest.raises(UserError, match="at most 256 characters, got 257"):
        Filter(name="*" * 257)


def test_a_stream_of_a_job_that_is_not_there_any_more_is_not_an_empty_one(ledger):
    with pytest.raises(Conflict, match="purged"):
        list(stream_predictions(ledger, new_id(), EVERYTHING))


# ---- at the console -----------------------------------------------------------------------------------


@pytest.fixture
def export(run_command):
    """Return a function: `export(job)` returns the rows and the stderr of `labelmill predictions`."""

    def export(job, *options: str) -> tuple[list[str], str]:
        done = run_command(predictions_command, job.id, "--format", "csv", *options)
        assert done.exit_code == 0, done.stderr
        return done.stdout.splitlines()[1:], done.stderr

    return export


def test_an_export_of_a_job_that_goes_on_says_that_it_is_a_part(export, make_job, worker):
    # Given a job with three of five images done
    job = make_job([3, 2])
    worker.work(job.chunks[0])
    part = f"incomplete: job {job.id} is running; 3 of its 5 images were done at the start\n"

    # When it is exported, Then the three are there, and stderr says that this is a part of the job
    rows, said = export(job)
    assert (len(rows), said) == (3, part)
    assert export(job, "--limit", "2")[1] == part + "more: --after 1\n"

    # When it is done, Then stderr is empty
    worker.work(job.chunks[1])
    rows, said = export(job)
    assert (len(rows), said) == (5, "")


def test_a_label_that_is_no_class_of_the_jobs_model_is_refused(make_job, worker, settings):
    job = make_job([1])
    worker.work(job.chunks[0])
    with Client(settings) as client, pytest.raises(UserError, match=r"'Seven' is not a class .* are 0, 1, 2"):
        client.predictions(job.id, label="Seven")
