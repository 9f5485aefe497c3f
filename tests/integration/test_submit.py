"""A submission stores the payload, then the row, then sends the message. If it fails, nothing is left."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.errors import (
    Conflict,
    ErrorCode,
    ImageError,
    NotFound,
    SourceError,
    Stopped,
    Unavailable,
    UserError,
)
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.queries import job_status, latest_jobs
from jobs.ledger.jobs.submission import ABANDONED_SECONDS, NewChunk, add_chunk, find_key, open_job, touch_job
from jobs.ledger.maintenance import fail_abandoned_jobs
from jobs.limits import JobLimits
from jobs.messages import CLASSIFY_TASK
from jobs.network.references import Reference, Roots
from jobs.options import DEFAULT_PROJECT, JobOptions
from jobs.queue import Publisher, make_app
from jobs.schema import JobState, chunks, db_now, jobs, predictions
from jobs.settings import Settings
from jobs.storage.payloads import Payload, payload_key, read_payload
from jobs.storage.store import Store
from producer import chunking, heartbeat
from producer import submit as submit_module
from producer.sources import SourceImage, Sources
from producer.submit import Submitted, Submitter, submit
from tests.console import until
from tests.ledger_probes import chunks_of, count_rows


def image(name: str, data: bytes = b"pixels") -> SourceImage:
    return SourceImage(name, data, None)


def missing(name: str) -> SourceImage:
    return SourceImage(name, None, ImageError(ErrorCode.SOURCE_MISSING, "permission denied"))


def images(count: int, prefix: str = "") -> list[SourceImage]:
    return [image(f"{prefix}{number}.png", f"{number}".encode()) for number in range(count)]


@pytest.fixture
def run(ledger, store, publisher, champion):  # noqa: ARG001 -- there has to be a model
    """Return a function: `run(images)` submits them in chunks of two."""

    def run(
        source,
        *,
        chunk_images=2,
        by_reference=None,
        limits=JobLimits(),  # noqa: B008 -- frozen
        ledger=ledger,
        store=store,
        publisher=publisher,
        on_progress=lambda _: None,
        on_wait=lambda _: None,
        **options,
    ) -> Submitted:
        submitter = Submitter(
            ledger, store, publisher, chunk_images, on_progress=on_progress, on_wait=on_wait
        )
        return submit(submitter, source, JobOptions(**options), by_reference=by_reference, limits=limits)

    return run


def test_a_key_belongs_to_the_model_of_its_job(run, make_model, champion):
    # Given a job with a key, submitted for the champion
    other = make_model(b"other", champion=False)
    first = run(images(3), key="mine")
    # When the same images are submitted for the champion by id, or for the other model
    assert run(images(3), key="mine", model=champion.id).job_id == first.job_id
    with pytest.raises(Conflict, match=f"submitted for model {champion.id}"):
        run(images(3), key="mine", model=other.id)
    # Then only another named model conflicts: without one, a new champion changes nothing
    make_model(b"new", champion=True)
    assert run(images(3), key="mine").job_id == first.job_id


def test_a_key_belongs_to_the_alternatives_of_its_job(run):
    # Given a job with a key and two alternatives
    first = run(images(3), key="mine", top_k=2)
    # When the same images are submitted with the same number, or without one, Then it is the same job
    assert run(images(3), key="mine", top_k=2).job_id == first.job_id
    assert run(images(3), key="mine").job_id == first.job_id
    # And another number conflicts
    with pytest.raises(Conflict, match="submitted with --top 2"):
        run(images(3), key="mine", top_k=3)


def payloads_of(ledger: Ledger, store: Store, job_id: str) -> list[Payload]:
    return [read_payload(store, chunk.payload, chunk.payload_digest) for chunk in chunks_of(ledger, job_id)]


def sizes_of(ledger: Ledger, job_id: str) -> list[int]:
    return [chunk.images for chunk in chunks_of(ledger, job_id)]


def files_of(settings: Settings) -> list[Path]:
    """Return every payload file, half-written ones included."""
    return [path for path in (settings.home / "store" / "payloads").rglob("*") if path.is_file()]


def folders_of(settings: Settings) -> list[str]:
    """Return the jobs that have payloads."""
    return [path.name for path in (settings.home / "store" / "payloads").glob("*")]


@pytest.fixture
def nothing_is_left(ledger, settings):
    def nothing_is_left() -> bool:
        rows = [count_rows(ledger, table) for table in (jobs, chunks, predictions)]
        return rows == [0, 0, 0] and files_of(settings) == []

    return nothing_is_left


# ---- a complete submission ----------------------------------------------------------------------------


def test_a_submitted_job_is_in_the_ledger_the_store_and_the_queue(
    run, ledger, store, broker, settings, champion
):
    # Given five images, one of which could not be read
    source = images(5)
    source[3] = missing("3.png")

    # When they are submitted in chunks of two
    submitted = run(iter(source))

    # Then the job is complete in the ledger, pinned to the champion
    assert (submitted.images, submitted.new) == (5, True)
    with ledger.reading() as connection:
        status = job_status(connection, submitted.job_id)
    assert (status.state, status.total, status.model) == (JobState.RUNNING, 5, champion.id)
    assert [(chunk.first_index, chunk.images) for chunk in chunks_of(ledger, submitted.job_id)] == [
        (0, 2),
        (2, 2),
        (4, 1),
    ]

    # And the payloads hold every name and image in order, and the error at its index
    payloads = payloads_of(ledger, store, submitted.job_id)
    assert [name for payload in payloads for name in payload.names] == [f"{n}.png" for n in range(5)]
    contents = [content for payload in payloads for content in payload.contents]
    assert contents[:3] + contents[4:] == [b"0", b"1", b"2", b"4"]
    assert (contents[3].code, contents[3].detail) == (ErrorCode.SOURCE_MISSING, "permission denied")
    assert len(files_of(settings)) == 3

    # And one wake-up waits for each chunk; it names no chunk
    for message in map(json.loads, broker.messages()):
        assert message["headers"]["task"] == CLASSIFY_TASK
        args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        assert (args, kwargs) == ([], {})
    assert broker.waiting() == 3


def priorities_of(ledger, job_id) -> list[int]:
    with ledger.reading() as connection:
        return list(connection.scalars(sa.select(chunks.c.priority).where(chunks.c.job_id == job_id)))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_small_job_goes_first_unless_a_priority_is_named(run, ledger):
    # Given a job of 64 images in one chunk, and larger jobs, all without a priority
    small, large, two_chunks = (
        run(images(64), chunk_images=100),
        run(images(65), chunk_images=100),
        run(images(4)),
    )

    # Then only the small job has a raised priority
    assert priorities_of(ledger, small.job_id) == [10]
    assert priorities_of(ledger, large.job_id) == [0]
    assert priorities_of(ledger, two_chunks.job_id) == [0, 0]

    # And a named priority applies to every chunk
    assert priorities_of(ledger, run(images(4), priority=-7).job_id) == [-7, -7]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_k": 0}, "from 1 to 10 classes, got 0"),
        ({"top_k": 11}, "from 1 to 10 classes, got 11"),
        ({"priority": -101}, "from -100 to 100"),
        ({"priority": 101}, "from -100 to 100"),
        ({"key": ""}, "A submission key has 1 to 256 characters"),
        ({"key": "k" * 257}, "A submission key has 1 to 256 characters"),
    ],
)
def test_an_option_out_of_range_is_refused_and_nothing_is_stored(run, nothing_is_left, option, message):
    with pytest.raises(UserError, match=message):
        run(images(1), **option)
    assert nothing_is_left()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_chunks_hold_as_many_bytes_as_they_may(run, ledger, monkeypatch):
    # Given chunks of at most ten bytes
    monkeypatch.setattr(chunking, "MAX_CHUNK_BYTES", 10)

    # When images of these sizes are submitted; one byte of each is its name
    sizes = [4, 6, 1, 25, 5, 6, 10, 1, 1, 1]
    named = [image(f"{n}", b"x" * (size - 1)) for n, size in enumerate(sizes)]
    job_id = run(named, chunk_images=100).job_id

    # Then a chunk closes before it would exceed the limit, and a larger image is alone in its chunk
    assert sizes_of(ledger, job_id) == [2, 1, 1, 1, 1, 1, 3]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_images_are_read_no_further_than_the_chunk_at_hand(run):
    # Given a source that counts the images it yields
    read = []

    def source() -> Iterator[SourceImage]:
        for one in images(7):
            read.append(one)
            yield one

    # When they are submitted, Then at most one chunk and the next image have been read
    seen = []
    run(source(), on_progress=lambda stored: seen.append((stored, len(read))))
    assert seen == [(2, 3), (4, 5), (6, 7), (7, 7)]


# ---- by reference -------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with three files that are named like images."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/c.png"):
        (folder / name).write_bytes(f"the pixels of {name}, ".encode() * 1000)
    return folder


def test_by_reference_a_payload_says_where_images_are_and_holds_none_of_their_bytes(
    run, ledger, store, settings, photos
):
    # Given a folder below a root, with one symlink to a file inside and one that leads out
    (photos / "deep" / "d.png").symlink_to("../a.png")
    (photos / "deep" / "e.png").symlink_to("/etc/hostname")

    # When it is submitted by reference
    submitted = run(Sources([str(photos)]), by_reference=Roots([str(photos.parent)]), chunk_images=100)

    # Then the payload has each image's path, SHA-256 and size, and an error for the link that leads out
    [payload] = payloads_of(ledger, store, submitted.job_id)
    assert payload.names == [
        f"{photos}/{name}" for name in ("a.png", "b.png", *map("deep/{}.png".format, "cde"))
    ]
    assert payload.contents[:4] == [
        Reference(f"{photos}/{name}", hashlib.sha256(data).hexdigest(), len(data))
        for name in ("a.png", "b.png", "deep/c.png", "a.png")
        for data in [(photos / name).read_bytes()]
    ]
    assert payload.contents[4].code == ErrorCode.SOURCE_FORBIDDEN

    # And the payload is small
    [file] = files_of(settings)
    assert b"the pixels" not in file.read_bytes()
    assert file.stat().st_size < 2000


def test_without_roots_nothing_is_read_or_submitted_by_reference(run, nothing_is_left):
    def source() -> Iterator[SourceImage]:
        pytest.fail("nobody needs these images")
        yield

    with pytest.raises(SourceError, match="set LABELMILL_REFERENCE_ROOTS"):
        run(source(), by_reference=Roots(()))
    assert nothing_is_left()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_what_is_in_an_archive_cannot_be_submitted_by_reference(run, nothing_is_left, photos):
    # Given an archive below a root
    archive = photos / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(photos / "a.png", "a.png")

    # When it is submitted by reference, Then the error says what to do
    with pytest.raises(SourceError, match=r"all\.zip/a\.png is part of a file.*unpack"):
        run(Sources([str(archive)]), by_reference=Roots([str(photos)]))
    assert nothing_is_left()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_chunks_by_reference_are_those_of_the_same_images_otherwise(run, ledger, photos, monkeypatch):
    # Given chunks of at most twice the size of the first image and its name
    first = photos / "a.png"
    size = first.stat().st_size + len(str(first))
    monkeypatch.setattr(chunking, "MAX_CHUNK_BYTES", 2 * size)

    # When they are submitted both ways, Then the chunks are alike: a worker reads the same bytes
    roots = Roots([str(photos)])
    sizes = [
        sizes_of(ledger, run(Sources([str(photos)]), chunk_images=100, by_reference=way).job_id)
        for way in (None, roots)
    ]
    assert sizes == [[2, 1], [2, 1]]


@pytest.mark.parametrize("first", [False, True], ids=["by value first", "by reference first"])
def test_the_same_content_by_reference_or_not_is_the_same_under_a_key(run, job_count, photos, first):
    # Given a job with a key
    roots = {False: None, True: Roots([str(photos)])}
    job_id = run(Sources([str(photos)]), key="mine", by_reference=roots[first]).job_id

    # When the same content is submitted the other way, Then it is the same job
    assert run(Sources([str(photos)]), key="mine", by_reference=roots[not first]).job_id == job_id

    # And other content conflicts either way
    (photos / "b.png").write_bytes(b"other pixels")
    for way in roots.values():
        with pytest.raises(Conflict):
            run(Sources([str(photos)]), key="mine", by_reference=way)
    assert job_count() == 1


# ---- the order of writes ------------------------------------------------------------------------------


class LookingStore(Store):
    """A store that calls `before` with the key before it writes a payload."""

    def __init__(self, url, before):
        super().__init__(url)
        self._before = before

    def put(self, key, *pieces):
        self._before(key)
        super().put(key, *pieces)


def test_first_the_payload_then_the_row_then_the_message(run, ledger_url, settings, store, monkeypatch):
    # Given an observer that reads ledger and store at every step
    onlooker = Ledger(ledger_url)
    steps = []

    def before_payload(key):
        chunk_id = key.split("/")[-1].removesuffix(".msgpack")
        with onlooker.reading() as connection:
            known = connection.scalar(sa.select(chunks.c.id).where(chunks.c.id == chunk_id))
        steps.append(("payload", known))

    real = Publisher.wake_up

    def look_and_wake_up(publisher, count=1):
        with onlooker.reading() as connection:
            row = connection.execute(sa.select(chunks).order_by(chunks.c.first_index.desc()).limit(1)).one()
        read_payload(store, row.payload, row.payload_digest)
        steps.append(("message", row.state))
        return real(publisher, count)

    monkeypatch.setattr(Publisher, "wake_up", look_and_wake_up)

    # When a job is submitted
    run(images(4), store=LookingStore(settings.store, before_payload))
    onlooker.close()

    # Then the payload exists before its row, and the row is committed before its message
    assert steps == [("payload", None), ("message", "pending")] * 2


# ---- what is refused ----------------------------------------------------------------------------------


def test_without_a_model_nothing_is_read_or_stored(ledger, store, publisher, nothing_is_left, broker):
    # Given a ledger without a champion
    def source() -> Iterator[SourceImage]:
        pytest.fail("nobody needs these images")
        yield

    # When images are submitted, Then the error says what to do
    with pytest.raises(NotFound, match="labelmill train"):
        submit(Submitter(ledger, store, publisher, 2), source())
    assert nothing_is_left()
    assert broker.waiting() == 0


def test_a_job_may_have_as_many_bytes_as_are_allowed_and_not_one_more(run, nothing_is_left, job_count):
    # Given images of 1,000 bytes, and an error, which counts no bytes
    four = [image(f"{number}.png", b"1" * 1000) for number in range(3)] + [missing("3.png")]
    with pytest.raises(SourceError, match=r"more than 2,999 bytes.*LABELMILL_MAX_JOB_BYTES higher"):
        run(four, limits=JobLimits(max_bytes=2999))
    assert nothing_is_left()
    assert run(four, limits=JobLimits(max_bytes=3000)).images == 4
    assert job_count() == 1


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_job_over_its_limits_by_reference_or_under_a_key_is_refused_as_well(run, nothing_is_left, photos):
    # Given images by reference: their bytes count too, because a worker reads them
    size = sum(path.stat().st_size for path in photos.iterdir())
    with pytest.raises(SourceError, match="LABELMILL_MAX_JOB_BYTES"):
        run(Sources([str(photos)]), by_reference=Roots([str(photos)]), limits=JobLimits(max_bytes=size - 1))
    assert nothing_is_left()

    # And a limit also applies if the key already has a job with the same images
    run(images(3), key="mine")
    with pytest.raises(SourceError, match="LABELMILL_MAX_JOB_IMAGES"):
        run(images(3), key="mine", limits=JobLimits(max_images=2))


# ---- failures -----------------------------------------------------------------------------------------


def breaks_after(count: int, happens) -> Iterator[SourceImage]:
    """Yield images, and call `happens` in the middle."""
    yield from images(count)
    happens()
    yield from images(3, prefix="more ")


def raises(error: BaseException):
    def happens():
        raise error

    return happens


@pytest.mark.parametrize("error", [ValueError("a broken archive"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("count", [1, 5])
def test_a_submission_that_is_interrupted_leaves_nothing(run, nothing_is_left, error, count):
    # Given a source that fails before or after chunks have been stored
    # When the images are submitted, Then the error is raised and nothing is left
    with pytest.raises(type(error)):
        run(breaks_after(count, raises(error)), key="mine")
    assert nothing_is_left()

    # And the same images can be submitted under the same key
    assert run(images(5), key="mine").new


def test_what_went_wrong_first_is_told_where_cleaning_up_goes_wrong_as_well(run, monkeypatch):
    # Given a ledger that is unavailable when an interrupted submission is taken back
    def away(*_: object, **__: object) -> bool:
        raise Unavailable("The ledger cannot be reached: database is locked")

    monkeypatch.setattr("producer.submit.Submitter._discard_job", away)
    # When the submission is interrupted, Then the interruption is what is raised
    with pytest.raises(KeyboardInterrupt):
        run(breaks_after(5, raises(KeyboardInterrupt())))


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("count", [2, 3], ids=["one chunk", "two"])
def test_a_last_commit_that_breaks_off_is_read_back(
    run, ledger, store, monkeypatch, nothing_is_left, sealed, count
):
    # Given a connection that breaks during the COMMIT that seals the job, after or before it takes effect
    real = Ledger.transaction
    broken: list[bool] = []

    @contextlib.contextmanager
    def breaking(self: Ledger, **named: bool) -> Iterator[sa.Connection]:
        with real(self, **named) as connection:
            yield connection
            complete = connection.scalar(sa.select(jobs.c.id).where(jobs.c.submitted_at.is_not(None)))
            if complete and not broken and not sealed:
                broken.append(True)
                raise Unavailable("The ledger cannot be reached.")
        if complete and not broken:
            broken.append(True)
            raise Unavailable("The ledger cannot be reached.")

    monkeypatch.setattr(Ledger, "transaction", breaking)

    # When a job is submitted, Then it is complete, or there is an error and nothing is left
    if sealed:
        job = run(images(count))
        assert job.images == count
        with ledger.reading() as connection:
            assert job_status(connection, job.job_id).total == count
            payloads = list(connection.scalars(sa.select(chunks.c.payload)))
        assert len(payloads) == count - 1
        for key in payloads:
            store.get(key)
    else:
        with pytest.raises(Unavailable):
            run(images(count))
        assert nothing_is_left()
    assert broken


# ---- a slow producer ----------------------------------------------------------------------------------


@pytest.fixture
def signs_come_fast(monkeypatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)


def signs_are_given() -> bool:
    return any(thread.name == "heartbeat" for thread in threading.enumerate())


@pytest.mark.usefixtures("signs_come_fast")
def test_a_producer_that_waits_for_its_source_is_alive(run, ledger, photos, job_count):
    # Given a pipe that delivers two paths, enough for one chunk, and then nothing for a while
    reading, writing = os.pipe()
    with (
        ThreadPoolExecutor(1) as pool,
        os.fdopen(reading) as stdin,
        os.fdopen(writing, "w", buffering=1) as paths,
    ):
        submitting = pool.submit(run, Sources(["-"], stdin=stdin), chunk_images=1, key="mine")
        paths.write(f"{photos}/a.png\n{photos}/b.png\n")
        until(lambda: job_count() == 1, "the first chunk", seconds=30)

        # When the row looks as if the producer had been silent for a quarter of an hour
        with ledger.transaction() as connection:
            connection.execute(jobs.update().values(touched_at=db_now(-900)))

        # Then the next heartbeat still counts: nobody fails the job or takes its key
        def is_alive() -> bool:
            with ledger.reading() as connection:
                return find_key(connection, DEFAULT_PROJECT, "mine").receiving

        until(is_alive, "a sign of life", seconds=30)
        with ledger.transaction() as connection:
            assert fail_abandoned_jobs(connection) == []

        # And when the last path arrives, the job is complete
        paths.write(f"{photos}/deep/c.png\n")
        paths.close()
        assert submitting.result(30).images == 3
    assert not signs_are_given()


@pytest.mark.usefixtures("signs_come_fast")
def test_a_job_that_is_cancelled_while_it_is_submitted_keeps_what_it_has(run, ledger):
    # Given a job that is cancelled while its producer waits for its source
    def cancel():
        assert signs_are_given()
        with ledger.transaction() as connection:
            [job] = latest_jobs(connection, limit=1)
            end_job(connection, job.id, JobState.CANCELLED)
        until(lambda: not signs_are_given(), "the last sign", seconds=30)

    # When the source goes on, Then the producer raises Stopped, without a further heartbeat
    with pytest.raises(Stopped, match="the results so far are kept"):
        run(breaks_after(3, cancel))
    assert not signs_are_given()
    with ledger.reading() as connection:
        [job] = latest_jobs(connection, limit=1)
    assert (job.state, job.total) == (JobState.CANCELLED, 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SourceError("the disk is gone")], ids=repr)
def test_a_job_that_was_stopped_stays_however_its_submission_ends(run, ledger, error):
    # Given a job that is cancelled while its producer waits for a source that yields nothing more
    def cancel_and_break():
        with ledger.transaction() as connection:
            [job] = latest_jobs(connection, limit=1)
            end_job(connection, job.id, JobState.CANCELLED)
        raise error

    # When the source then raises an error, or the user presses Ctrl-C
    with pytest.raises(type(error)):
        run(breaks_after(3, cancel_and_break))
    # Then the cancelled job is still there
    with ledger.reading() as connection:
        [job] = latest_jobs(connection, limit=1)
    assert (job.state, job.submitted_at) == (JobState.CANCELLED, None)


@pytest.mark.usefixtures("signs_come_fast")
def test_a_sign_that_is_lost_is_followed_by_others(run, monkeypatch):
    # Given a ledger that is unavailable for the first three heartbeats
    real = touch_job
    lost: list[bool] = []
    given = threading.Event()

    def away_at_first(*arguments, **named) -> bool:
        if len(lost) < 3:
            lost.append(True)
            raise Unavailable("The ledger cannot be reached.")
        given.set()
        return real(*arguments, **named)

    monkeypatch.setattr("producer.submit.touch_job", away_at_first)

    # When the producer waits, Then a later heartbeat succeeds, and the job is submitted
    assert run(breaks_after(3, lambda: given.wait(30))).images == 6
    assert given.is_set()


@pytest.mark.usefixtures("signs_come_fast")
def test_an_interruption_does_not_wait_for_a_sign_that_waits_for_it(
    run, ledger_url, nothing_is_left, monkeypatch
):
    # Given a ledger with long time limits for locks
    monkeypatch.setattr("jobs.ledger.database.STALLED_SESSION_SECONDS", 120)
    monkeypatch.setattr("jobs.ledger.database.SQLITE_BUSY_SECONDS", 120)
    own = Ledger(ledger_url)

    # And Ctrl-C in a transaction that holds the job's row, for which a heartbeat waits
    def interrupt(_images: int) -> None:
        transaction = own.transaction()
        connection = transaction.__enter__()
        connection.execute(jobs.update().values(total=jobs.c.total))
        time.sleep(0.2)
        raise KeyboardInterrupt

    # When that interrupts the submission, Then the job is taken back at once: neither waits for the other
    began = time.monotonic()
    with contextlib.closing(own), pytest.raises(KeyboardInterrupt):
        run(images(5), ledger=own, on_progress=interrupt)
    assert time.monotonic() - began < 60
    assert nothing_is_left()


# ---- submission keys ----------------------------------------------------------------------------------


@pytest.fixture
def job_count(ledger):
    return lambda: count_rows(ledger, jobs)


def test_the_same_content_under_the_same_key_is_the_same_job(run, job_count, settings, broker):
    # Given a job with a key
    source = images(5)
    source[2] = missing("2.png")
    first = run(source, key="mine")
    files, messages = files_of(settings), broker.waiting()

    # When the same content is submitted again: unchanged, in another order, in other chunks
    for again, size in ((source, 2), (source[::-1], 2), (source[2:] + source[:2], 100)):
        # Then it is the same job, and nothing is stored or published
        assert run(again, key="mine", chunk_images=size) == Submitted(first.job_id, 5, new=False)
    assert job_count() == 1
    assert files_of(settings) == files
    assert broker.waiting() == messages


def test_the_longest_key_there_is_fits_the_index(run):
    key = "\U0001f5dd" * 256
    first = run(images(3), key=key)
    assert run(images(3), key=key) == first._replace(new=False)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (images(5), images(4)),
        (images(5), images(6)),
        (images(5), [*images(4), image("4.png", b"other pixels")]),
        (images(5), [*images(4), image("other name.png", b"4")]),
        (images(5), [*images(4), missing("4.png")]),
        (images(5), [*images(5), image("4.png", b"4")]),
        (images(5), [*images(3), image("3.png", b"4"), image("4.png", b"3")]),
        (images(5), [*images(4), image("4.pn", b"g4")]),
        ([missing("a.png")], [image("a.png", b"source_missing")]),
        # A pair of the same images does not cancel itself
        ([*images(1), *[image("x.png", b"x")] * 2], [*images(1), *[image("y.png", b"y")] * 2]),
        ([*images(1), *[image("x.png", b"x")] * 2], images(1)),
    ],
    ids=[
        *("fewer", "more", "pixels", "name", "error", "twice", "swapped", "border", "spelt error"),
        *("another pair", "no pair"),
    ],
)
def test_other_content_under_the_same_key_is_refused(run, job_count, settings, mine, other):
    # Given a job with a key
    first = run(mine, key="mine")
    files = files_of(settings)

    # When other content is submitted under its key, Then the error names the job, and nothing is stored
    with pytest.raises(Conflict, match=f"(?s)'mine'.*{first.job_id}"):
        run(other, key="mine")
    assert job_count() == 1
    assert files_of(settings) == files


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_an_empty_submission_under_a_known_key_is_refused(run):
    run(images(3), key="mine")
    with pytest.raises(SourceError):
        run([], key="mine")


def test_two_submit_under_one_key_at_once_and_it_is_one_job(run, ledger_url, settings, broker, job_count):
    # Given four producers with the same content that start together
    start = threading.Barrier(4, timeout=30)

    def source() -> Iterator[SourceImage]:
        yield from images(3)
        start.wait()
        yield from images(2, prefix="more ")

    def produce(_number) -> Submitted:
        own = Ledger(ledger_url)
        app = make_app(settings)
        try:
            return run(source(), key="mine", ledger=own, publisher=Publisher(app), chunk_images=100)
        finally:
            app.close()
            own.close()

    # When they submit
    with ThreadPoolExecutor(4) as pool:
        submitted = list(pool.map(produce, range(4)))

    # Then there is one job, and all four have its id
    [job_id] = {one.job_id for one in submitted}
    assert sorted(one.new for one in submitted) == [False, False, False, True]
    assert job_count() == 1
    assert folders_of(settings) == [job_id]
    assert len(files_of(settings)) == 1
    assert broker.waiting() == 1


def test_who_waits_for_another_under_the_same_key_says_so_once(run, monkeypatch):
    # Given a producer that is submitting, and goes on for a while after another one waits for it
    monkeypatch.setattr(submit_module, "_KEY_POLL_SECONDS", 0.01)
    begun, waited_for = threading.Event(), threading.Event()
    said: list[str] = []

    def source() -> Iterator[SourceImage]:
        yield from images(5)
        begun.set()
        assert waited_for.wait(30)
        time.sleep(0.2)  # for many polls, none of which may report the wait again

    def say(job_id: str) -> None:
        said.append(job_id)
        waited_for.set()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run, source(), key="mine")
        assert begun.wait(30)

        # When another one submits the same content, Then it reports the wait once and gets that job
        submitted = run(images(5), key="mine", on_wait=say)
    assert said == [submitted.job_id] == [other.result().job_id]
    assert not submitted.new


@pytest.mark.parametrize("theirs", [5, 4], ids=["the same content", "other content"])
def test_a_key_taken_between_the_look_and_the_insert(run, settings, job_count, theirs):
    # Given a producer that found its key free, and is overtaken while it stores its first payload
    overtaking: list[Submitted] = []

    def be_overtaken(_key):
        if not overtaking:
            overtaking.append(run(images(theirs), key="mine"))

    # When it then opens its job, Then it gets the other producer's job, or an error if that has other content
    store = LookingStore(settings.store, be_overtaken)
    if theirs == 5:
        assert run(images(5), key="mine", store=store) == Submitted(overtaking[0].job_id, 5, new=False)
    else:
        with pytest.raises(Conflict, match="other content"):
            run(images(5), key="mine", store=store)

    # And it leaves nothing of its own
    assert job_count() == 1
    assert folders_of(settings) == [overtaking[0].job_id]


def test_a_killed_producers_job_can_be_submitted_again(run, ledger, store, settings, champion, job_count):
    # Given what remains of a producer that was killed some time ago, after its first chunk
    job_id, chunk_id = new_id(), new_id()
    store.put(payload_key(job_id, chunk_id), b"half a job")
    with ledger.transaction() as connection:
        open_job(connection, job_id, JobOptions(key="mine"), model_id=champion.id)
        add_chunk(connection, job_id, NewChunk(chunk_id, 0, 2, payload_key(job_id, chunk_id), "0" * 64))
        connection.execute(jobs.update().values(touched_at=db_now(-ABANDONED_SECONDS - 1)))

    # When the same content is submitted again
    submitted = run(images(5), key="mine")

    # Then it is a new job, and nothing of the old one is left
    assert submitted.new
    assert submitted.job_id != job_id
    assert job_count() == 1
    assert folders_of(settings) == [submitted.job_id]
