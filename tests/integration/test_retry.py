"""A retry submits just the images without a label, with their names and contents, for the same model."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.errors import Conflict, ErrorCode, ImageError, LeaseLost, NotFound, PayloadDamaged
from jobs.ledger import Ledger
from jobs.ledger.jobs import queries as retries
from jobs.ledger.jobs.queries import job_status
from jobs.ledger.jobs.submission import NewChunk
from jobs.ledger.learning.known_labels import manifest_labels
from jobs.network.references import Roots
from jobs.schema import ChunkState, JobState, jobs
from jobs.settings import ENV_PREFIX
from jobs.storage.payloads import Content, Payload, read_payload
from jobs.storage.store import Store
from labelmill.client.purging import Purge
from labelmill.commands.retry import app as retry_command
from producer import batch_images as retry_module
from producer.resubmit import retry
from producer.sources import SourceImage, Sources
from producer.submit import Submitted, Submitter
from tests.conftest import Job
from tests.ledger_probes import cancel, chunks_of
from tests.outcomes import Outcome

Again = Callable[..., Submitted | None]


@pytest.fixture
def again(ledger, store, publisher, settings) -> Again:
    """Return a function: `again(job)` retries the job in chunks of three."""

    def again(job: Job, *, failed_only: bool = False, chunk_images: int = 3) -> Submitted | None:
        submitter = Submitter(ledger, store, publisher, chunk_images)
        return retry(submitter, settings, job.id, failed_only=failed_only)

    return again


@pytest.fixture
def images_of(ledger, store):
    """Return a function: `images_of(job_id)` returns names and contents from all payloads of a job."""

    def images_of(job_id: str) -> list[tuple[str, Content]]:
        found: list[tuple[str, Content]] = []
        for chunk in chunks_of(ledger, job_id):
            payload = read_payload(store, chunk.payload, chunk.payload_digest)
            found += zip(payload.names, payload.contents, strict=True)
        return found

    return images_of


def outcomes(first: int, errors: Sequence[int], images: int) -> list[Outcome]:
    """Return a chunk's outcomes, with an error for these indices of the job."""
    return [
        Outcome(f"{index}.png", None, None, ErrorCode.CORRUPT)
        if index in errors
        else Outcome(f"{index}.png", "7", 0.75)
        for index in range(first, first + images)
    ]


def finish(worker, job: Job, *, errors: Sequence[int] = (), only: Sequence[int] | None = None) -> None:
    """Finish the job's chunks, or only those with these numbers."""
    for number, chunk in enumerate(job.chunks):
        if only is None or number in only:
            worker.work(chunk, outcomes(chunk.first_index, errors, chunk.images))


def names_of(images: Iterable[tuple[str, Content]]) -> list[str]:
    return [name for name, _ in images]


def test_a_retried_image_keeps_its_true_label(ledger, submitted, again, worker):
    # Given a job whose images have known labels, the second with an error
    job = submitted(SourceImage(f"{n}.png", b"x", None, label="ant") for n in range(2))
    finish(worker, job, errors=[1])
    with ledger.reading() as connection:
        assert manifest_labels(connection, again(job).job_id) == {0: "ant"}


# ---- which images -------------------------------------------------------------------------------------


def test_what_got_an_error_is_a_job_of_its_own(
    ledger, submitted, again, worker, images_of, broker, make_model, champion
):
    # Given a job that is done with some errors, and a champion that has changed since
    job = submitted(10, top_k=3)
    finish(worker, job, errors=[1, 3, 4, 5, 9])
    make_model(b"a later model")
    broker.client.flushall()

    # When it is retried
    new = again(job)

    # Then just the failed images are submitted, in order, with their names and contents, for the same model
    assert (new.images, new.new) == (5, True)
    assert images_of(new.job_id) == [(f"{n}.png", f"pixels {n}".encode()) for n in (1, 3, 4, 5, 9)]
    with ledger.reading() as connection:
        status = job_status(connection, new.job_id)
    assert (status.state, status.total, status.model) == (JobState.RUNNING, 5, champion.id)
    assert (status.retry_of, status.top_k) == (job.id, 3)

    # And a wake-up is sent for each of their chunks, which have the usual size
    assert [chunk.images for chunk in chunks_of(ledger, new.job_id)] == [3, 2]
    assert broker.waiting() == 2

    # And the first job is unchanged
    with ledger.reading() as connection:
        before = job_status(connection, job.id)
    assert (before.state, before.succeeded, before.failed) == (JobState.DONE, 5, 5)
    assert len(images_of(job.id)) == 10


@pytest.mark.parametrize("failed_only", [False, True])
def test_a_stopped_jobs_other_images_are_tried_too_unless_only_errors_are_asked_for(
    ledger, submitted, again, worker, images_of, failed_only
):
    # Given a cancelled job whose second chunk is done with an error, and whose others were never classified
    job = submitted(10)
    finish(worker, job, errors=[4], only=[1])
    cancel(ledger, job)

    # When it is retried
    new = again(job, failed_only=failed_only)

    # Then all images without a label are submitted, or only the failed ones
    expected = [4] if failed_only else [0, 1, 2, 4, 6, 7, 8, 9]
    assert names_of(images_of(new.job_id)) == [f"{n}.png" for n in expected]


def test_if_every_image_has_a_label_or_no_error_that_is_asked_for_there_is_nothing_to_do(
    ledger, submitted, again, worker
):
    # Given a job that is done, and a cancelled one that has no error
    done, stopped = submitted(4), submitted(7)
    finish(worker, done)
    finish(worker, stopped, only=[0])
    cancel(ledger, stopped)

    # When they are retried, the second for its errors only, Then no job is made
    assert again(done) is None
    assert again(stopped, failed_only=True) is None
    with ledger.reading() as connection:
        assert set(connection.scalars(sa.select(jobs.c.id))) == {done.id, stopped.id}


@pytest.mark.parametrize("has_outcome", [True, False])
def test_what_could_not_be_read_when_it_was_submitted_gets_its_error_again(
    ledger, submitted, again, worker, images_of, has_outcome
):
    # Given a job with an image that could not be read and one that is corrupt, done or cancelled
    missing = SourceImage("0.png", None, ImageError(ErrorCode.SOURCE_MISSING, "no such file"))
    job = submitted([missing, SourceImage("1.png", b"x", None)])
    if has_outcome:
        finish(worker, job, errors=[0, 1])
    else:
        cancel(ledger, job)

    # When it is retried, Then both are submitted, the first with its error
    (name, content), other = images_of(again(job).job_id)
    assert (name, content.code, content.detail) == ("0.png", ErrorCode.SOURCE_MISSING, "no such file")
    assert other == ("1.png", b"x")


def halve(worker, chunk) -> None:
    """Crash the chunk until a claim halves it, and leave both halves pending."""
    while not (claim := worker.must_claim(chunk)).was_cut:
        worker.crash(claim)
    worker.release(claim)


def test_halves_of_a_chunk_that_was_split_are_found_in_its_payload(
    ledger, submitted, again, worker, images_of
):
    # Given a chunk of six that was halved, and whose second half was halved again
    job = submitted(9, chunk_images=6)
    halve(worker, job.chunks[0])
    worker.work(job.chunks[1], outcomes(6, [8], 3))
    first, second = chunks_of(ledger, job.id, ChunkState.PENDING)
    halve(worker, second)
    first, second, third = chunks_of(ledger, job.id, ChunkState.PENDING)
    assert [chunk.images for chunk in (first, second, third)] == [3, 1, 2]

    # And errors in each of the three parts
    for chunk in (first, second, third):
        worker.work(chunk, outcomes(chunk.first_index, [1, 3, 5], chunk.images))

    # When the job is retried, Then just the failed images are submitted, with their own contents
    new = again(job)
    assert images_of(new.job_id) == [(f"{n}.png", f"pixels {n}".encode()) for n in (1, 3, 5, 8)]


def test_many_chunks_are_looked_at_page_by_page(submitted, again, worker, images_of):
    # Given a job with more chunks than one page, and errors at the page boundaries
    job = submitted(150, chunk_images=1)
    errors = [0, 63, 64, 65, 127, 128, 149]
    finish(worker, job, errors=errors)
    new = again(job, chunk_images=100)
    assert images_of(new.job_id) == [(f"{n}.png", f"pixels {n}".encode()) for n in errors]


def test_an_image_by_reference_is_referred_to_again(submitted, again, worker, images_of, tmp_path):
    # Given a job by reference whose image has changed since
    (tmp_path / "a.png").write_bytes(b"before")
    roots = Roots([str(tmp_path)])
    job = submitted(Sources([str(tmp_path / "a.png")]), by_reference=roots)
    [(name, reference)] = images_of(job.id)
    worker.work(job.chunks[0], [Outcome(name, None, None, ErrorCode.SOURCE_CHANGED)])

    # When it is retried, Then the same reference is submitted, and a worker reads it again
    assert images_of(again(job).job_id) == [(name, reference)]


# ---- when a job cannot be retried ---------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
def test_a_job_that_goes_on_is_not_tried_again(make_job, again, sealed):
    with pytest.raises(Conflict, match="has not finished"):
        again(make_job([2], sealed=sealed))


def test_a_job_that_is_not_there_is_not_tried_again(again):
    with pytest.raises(NotFound):
        again(Job("nonsense", []))


def test_a_chunk_in_work_of_a_stopped_job_is_waited_for(ledger, submitted, again, worker, images_of):
    # Given a cancelled job with a claimed chunk, whose outcomes would still be accepted
    job = submitted(6)
    claim = worker.must_claim(job.chunks[0])
    cancel(ledger, job)

    # When it is retried, Then that is refused for now
    with pytest.raises(Conflict, match="worker still has"):
        again(job)

    # When the worker has recorded its outcomes, Then the rest can be retried
    worker.finish(claim, outcomes(0, [2], 3))
    assert names_of(images_of(again(job).job_id)) == ["2.png", "3.png", "4.png", "5.png"]


def test_a_worker_that_comes_back_after_a_retry_records_nothing(ledger, submitted, again, worker, images_of):
    # Given a cancelled job with a chunk whose lease has expired
    job = submitted(3)
    claim = worker.must_claim(job.chunks[0], lease_seconds=-1)
    cancel(ledger, job)

    # When the job is retried, and the worker then records
    new = again(job)
    assert len(images_of(new.job_id)) == 3
    with pytest.raises(LeaseLost):
        worker.finish(claim)

    # Then its outcomes are refused, so that no image has two labels
    with ledger.reading() as connection:
        assert job_status(connection, job.id).done == 0


# ---- while its payloads go ----------------------------------------------------------------------------


def purge(ledger: Ledger, store: Store, _payload: str = "") -> None:
    """Purge all finished jobs."""
    Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None).whole_jobs(days=-1)


def purge_payloads(ledger: Ledger, store: Store, _payload: str) -> None:
    """Purge the payloads of all finished jobs."""
    Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None).payloads(days=-1)


def lose(_ledger: Ledger, store: Store, payload: str) -> None:
    """Remove this payload, as no purge does."""
    store.remove(payload)


@pytest.fixture
def happens_at(ledger, monkeypatch):
    """Return a function: `happens_at(chunk, purge)` purges all finished jobs once its payload was read."""
    real = retry_module.read_payload

    def happens_at(
        chunk: NewChunk, happens: Callable[[Ledger, Store, str], None], *, before: bool = False
    ) -> None:
        def read(store: Store, key: str, *arguments: Any, **options: Any) -> Payload:
            if before and key == chunk.payload:
                happens(ledger, store, key)
            found = real(store, key, *arguments, **options)
            if not before and key == chunk.payload:
                happens(ledger, store, key)
            return found

        monkeypatch.setattr(retry_module, "read_payload", read)

    return happens_at


@pytest.mark.parametrize(
    ("errors", "number", "before", "happens", "why"),
    [
        pytest.param(9, 0, False, purge, "was purged while", id="all failed"),
        pytest.param(3, 0, False, purge, "was purged while", id="the first chunk failed"),
        pytest.param(1, 0, False, purge, "was purged while", id="the first image failed"),
        pytest.param(9, 1, True, purge, "was purged while", id="before a payload is read"),
        pytest.param(9, 1, True, purge_payloads, "was purged while", id="only payloads"),
        pytest.param(9, 1, True, lose, "is gone from the store", id="lost"),
    ],
)
def test_a_job_whose_payloads_go_meanwhile_is_not_tried_again_in_part(
    ledger, store, submitted, again, worker, monkeypatch, happens_at, errors, number, before, happens, why
):
    # Given a job of three chunks, read one chunk per page, whose first images failed
    monkeypatch.setattr(retries, "_PAGE_CHUNKS", 1)
    job = submitted(9)
    finish(worker, job, errors=range(errors))

    # And payloads that are purged or lost in the middle
    happens_at(job.chunks[number], happens, before=before)

    # When it is retried, Then the error names the reason, and no job has a part of the images
    with pytest.raises((Conflict, PayloadDamaged), match=why):
        again(job, failed_only=True)
    with ledger.reading() as connection:
        job_ids = set(connection.scalars(sa.select(jobs.c.id)))
    assert job_ids | set(store.folders("payloads")) <= {job.id}


def test_a_job_that_is_purged_when_all_was_read_is_tried_again_whole(
    submitted, again, worker, happens_at, images_of
):
    # Given a job that is purged after its last payload was read
    job = submitted(9)
    finish(worker, job, errors=range(9))
    happens_at(job.chunks[-1], purge)

    # When it is retried, Then the new job is complete, because it needs nothing more of the first
    new = again(job)
    assert images_of(new.job_id) == [(f"{n}.png", f"pixels {n}".encode()) for n in range(9)]


def test_a_job_that_is_purged_before_its_first_page_is_read_is_not_an_empty_one(
    ledger, store, submitted, again, worker, monkeypatch
):
    # Given a job with an error, and a purge just after the job was accepted for the retry
    job = submitted(3)
    finish(worker, job, errors=[1])
    real = retry_module.images_without_label

    def purge_and_look(*arguments: Any, **options: Any) -> Iterator[retries.Unlabelled]:
        purge(ledger, store)
        yield from real(*arguments, **options)

    monkeypatch.setattr(retry_module, "images_without_label", purge_and_look)

    # When it is retried, Then the error names the purge, instead of an empty result
    with pytest.raises(Conflict, match="purged"):
        again(job)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_memory_holds_a_chunk_and_not_the_job(submitted, again, worker):
    # Given a job of forty chunks of one megabyte each
    megabyte = bytes(1_000_000)
    job = submitted((SourceImage(f"{n}.png", megabyte, None) for n in range(40)), chunk_images=1)
    finish(worker, job, errors=range(40))

    # When all of it is retried, Then memory holds at most a few chunks
    tracemalloc.start()
    try:
        again(job, chunk_images=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


# ---- at the console -----------------------------------------------------------------------------------


def test_what_is_left_out_by_failed_is_said(ledger, submitted, run_command, broker, monkeypatch):
    # given a job that was cancelled before any of it was classified, and a broker that cannot be reached
    job = submitted(5)
    cancel(ledger, job)
    broker.client.flushall()
    monkeypatch.setenv(ENV_PREFIX + "BROKER_URL", "redis+socket:///nowhere/valkey.sock")

    # when only its errors are retried, then the command says that there are other images
    done = run_command(retry_command, job.id, "--failed")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "5 images that it never reached: leave out --failed" in done.stderr

    # and without `--failed` they are retried, and the command says why no worker was told
    done = run_command(retry_command, job.id)
    assert done.exit_code == 0
    assert "The broker cannot be used (" in done.stderr
    assert broker.waiting() == 0
