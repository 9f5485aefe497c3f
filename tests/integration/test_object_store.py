"""Buckets of a real S3 server: as sources, by reference, and as the store."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
import sqlalchemy as sa

from jobs.errors import ErrorCode, ImageError, SourceError, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.api.batches import MAX_RELEASES
from jobs.ledger.jobs.queries import job_status
from jobs.models.model import Model
from jobs.network.references import Reference, Roots
from jobs.queue import Publisher
from jobs.schema import JobState, batches, chunks
from jobs.settings import Settings
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from producer.sources import Sources, ahead
from producer.sources.ahead import READERS
from tests.faults.test_intake import Source, names_of
from tests.harness import Harness, digits, make_harness
from tests.intake import take_in_next
from tests.s3 import S3Server
from tests.sources import outcome
from worker.predicting.context import WorkerContext

on_one_database = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

#: Names that a server, a URL or a signature could take for something else.
ODD_NAMES = ["a b.png", "a+b.png", "100%.png", "ä/日本 語.png", "what?.png", "x#1.png", "q&a=b.png"]


def put(bucket: str, *names: str, data: bytes = b"x") -> None:
    filesystem = fsspec.filesystem("s3")
    for name in names:
        filesystem.pipe_file(f"{bucket.removeprefix('s3://')}/{name}", data)


def test_objects_below_a_prefix_are_read_many_at_a_time_in_order(s3: S3Server, s3_bucket: str) -> None:
    # Given many objects on a server that takes its time
    names = [f"photos/{number % 3}/{number:02}.png" for number in range(60)]
    put(s3_bucket, *names, "photos2/other.png", "photos/notes.txt")
    s3.reset()
    s3.delay = 0.05

    # When they are read
    images = list(Sources([f"{s3_bucket}/photos/"]))

    # Then all come, in order, with one request each, and many requests at the same time
    assert [image.name for image in images] == [f"{s3_bucket}/{name}" for name in sorted(names)]
    assert all(image.data == b"x" for image in images)
    read = [request for request in s3.requests if ".png" in request]
    assert len(read) == 60
    assert 4 < s3.at_once <= READERS


def test_a_folder_is_read_while_it_is_listed(
    s3: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a folder that the server lists in pages of 3, with objects and folders of similar names, and one
    # object that stands for the folder itself
    names = [
        *(f"{number:02}.png" for number in range(20)),
        "a/1.png",
        "a/2.png",
        "a-b/1.png",
        "a.png",
        "b.png",
    ]
    put(s3_bucket, "photos/", *(f"photos/{name}" for name in names))
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    monkeypatch.setattr(ahead, "AHEAD_OBJECTS", 4)
    s3.reset()

    # When its first image is there
    images = iter(Sources([f"{s3_bucket}/photos/"]))
    first = next(images)

    # Then two requests have looked what is there, and at most two pages of nine were listed
    listed = [request for request in s3.requests if request == f"GET /{s3_bucket.removeprefix('s3://')}"]
    assert 2 < len(listed) <= 4

    # And all images come, in the order of their keys
    found = [image.name.removeprefix(f"{s3_bucket}/photos/") for image in (first, *images)]
    assert found == sorted(names)


@pytest.mark.usefixtures("s3")
def test_names_may_have_spaces_and_any_letters(s3_bucket: str) -> None:
    put(s3_bucket, *(f"odd names/{name}" for name in ODD_NAMES))
    images = list(Sources([f"{s3_bucket}/odd names/"]))
    assert {image.name for image in images} == {f"{s3_bucket}/odd names/{name}" for name in ODD_NAMES}
    assert all(image.data == b"x" for image in images)
    # Each can also be named by itself, and read by reference
    roots = Roots([f"{s3_bucket}/odd names/"])
    for image in images:
        assert image.url is not None
        assert [one.data for one in Sources([image.url])] == [b"x"]
        reference = Reference(roots.locate(image.url), hashlib.sha256(b"x").hexdigest(), 1)
        assert roots.read(reference, max_bytes=10) == b"x"


def test_an_object_that_vanishes_or_changes_concerns_only_itself(s3: S3Server, s3_bucket: str) -> None:
    # Given objects of which some vanish, grow or are emptied once they are listed
    put(s3_bucket, *(f"photos/{name}.png" for name in "abcdef"))
    put(s3_bucket, "photos/empty.png", data=b"")
    put(s3_bucket, "photos/large.png", data=bytes(101))
    lock, changed = threading.Lock(), []

    def change(request: str) -> None:
        if request.startswith("GET") and request.endswith(".png"):
            with lock:
                if not changed:
                    changed.append(request)
                    fsspec.filesystem("s3").rm_file(f"{s3_bucket}/photos/b.png")
                    put(s3_bucket, "photos/c.png", data=bytes(101))
                    put(s3_bucket, "photos/d.png", data=b"")

    s3.before = change

    # When they are read, Then each has its bytes or its error
    found = dict(map(outcome, Sources([f"{s3_bucket}/photos/"], max_bytes=100)))
    assert {name.rpartition("/")[2]: what for name, what in found.items()} == {
        "a.png": b"x",
        "b.png": ErrorCode.SOURCE_MISSING,
        "c.png": ErrorCode.TOO_LARGE,
        "d.png": b"",
        "e.png": b"x",
        "f.png": b"x",
        "empty.png": b"",
        "large.png": ErrorCode.TOO_LARGE,
    }


def test_a_reference_whose_object_was_emptied_has_changed(s3_bucket: str) -> None:
    put(s3_bucket, "photos/a.png", data=b"")
    roots = Roots([s3_bucket])
    with pytest.raises(ImageError) as changed:
        roots.read(Reference(f"{s3_bucket}/photos/a.png", "0" * 64, 5), max_bytes=10)
    assert changed.value.code == ErrorCode.SOURCE_CHANGED


# ---- what is missing or forbidden ---------------------------------------------------------------------


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_said_to_be_missing() -> None:
    with pytest.raises(SourceError, match="cannot find s3://nowhere/photos/: check the spelling"):
        Sources(["s3://nowhere/photos/"])
    store = Store("s3://nowhere/mill")
    with pytest.raises(Unavailable, match=r"cannot be written: .*bucket does not exist"):
        store.put("payloads/a", b"x")
    with pytest.raises(Unavailable, match="bucket does not exist"), store.writer("files/a") as write:
        write(b"x")
    with pytest.raises(Unavailable, match="has no payloads at all"):
        store.get("payloads/a")


def test_wrong_credentials_are_said_to_be_wrong(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a server that knows nobody with these credentials
    put(s3_bucket, "photos/a.png")
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)

    # Then sources and stores say that access is denied, and repeat no secret
    with pytest.raises(SourceError, match=r"access to .* is denied: check the credentials"):
        Sources([f"{s3_bucket}/photos/"])
    with pytest.raises(Unavailable, match=r"cannot be written: .*AWS Access Key Id") as denied:
        Store(s3_bucket).put("payloads/a", b"x")
    assert "testing" not in str(denied.value)
    with pytest.raises(Unavailable, match="cannot be read"):
        Store(s3_bucket).exists("payloads/a")


@on_one_database
def test_a_request_that_the_server_refuses_is_the_images_error(
    settings: Settings,
    ledger: Ledger,
    publisher: Publisher,
    store: Store,
    champion: Model,
    s3: S3Server,
    s3_bucket: str,
    tmp_path: Path,
) -> None:
    # Given a link to an object in a version that cannot exist, and a server that says so
    settings = settings.model_copy(update={"reference_roots": (f"{s3_bucket}/photos",)})
    manifest = tmp_path / "links.csv"
    manifest.write_text(f"url\n{s3_bucket}/photos/a.png?versionId=bogus\n")
    s3.answer = (400, b"<Error><Code>InvalidArgument</Code><Message>Invalid version id</Message></Error>")

    # When it is taken in, Then the image is missing, and the batch is complete
    source = Source(["a"], manifest)
    source.submit(ledger, store, champion)
    assert take_in_next(ledger, store, publisher, settings, owner="test")
    with ledger.reading() as connection:
        row = connection.execute(sa.select(chunks)).one()
        assert connection.scalar(sa.select(batches.c.state)) == "done"
    [error] = read_payload(store, row.payload, row.payload_digest).contents
    assert (error.code, error.detail) == (ErrorCode.SOURCE_MISSING, "the server answered 400")

    # When the credentials have expired, Then nothing is missing: the batch waits, longer each time
    s3.answer = (400, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
    job_id = source.submit(ledger, store, champion)
    pauses = []
    for _ in range(3):
        assert take_in_next(ledger, store, publisher, settings, owner="test")
        with ledger.transaction() as connection:
            left = connection.execute(sa.select(batches).where(batches.c.job_id == job_id)).one()
            pauses.append(round((left.not_before - datetime.now(UTC)).total_seconds()))
            connection.execute(batches.update().values(not_before=None))
    assert (left.state, left.attempts, left.releases, pauses) == ("pending", 0, 3, [1, 2, 4])

    # When that lasts for a day, Then the batch fails with the reason
    with ledger.transaction() as connection:
        connection.execute(batches.update().values(releases=MAX_RELEASES))
    assert take_in_next(ledger, store, publisher, settings, owner="test")
    with ledger.reading() as connection:
        status = job_status(connection, job_id)
    assert status.state == JobState.FAILED
    assert "could not be read for a day: s3://" in status.error
    assert "ExpiredToken" in status.error


# ---- a server that stops in the middle ----------------------------------------------------------------


@pytest.fixture
def bucket_store(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a store in a bucket, which is given up at once if its server does not answer."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return Store(f"{s3_bucket}/mill")


@on_one_database
def test_an_intake_continues_when_its_bucket_is_back(
    settings: Settings,
    ledger: Ledger,
    publisher: Publisher,
    bucket_store: Store,
    champion: Model,
    s3: S3Server,
    tmp_path: Path,
) -> None:
    # Given an uploaded archive in the bucket, and a server that stops at the third payload
    names = [f"{number:02}.png" for number in range(50)]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for name in names:
            file.writestr(name, f"pixels {name}")
    settings = settings.model_copy(update={"chunk_images": 10, "store_url": bucket_store.url})
    job_id = Source(names, tmp_path / "images.zip").submit(ledger, bucket_store, champion)
    payloads = []

    def stop_at_third(request: str) -> None:
        if request.startswith("PUT") and "payloads" in request:
            payloads.append(request)
            if len(payloads) == 3:
                s3.stop()
                raise ConnectionError

    s3.before = stop_at_third

    # When it is taken in, Then it is released
    assert take_in_next(ledger, bucket_store, publisher, settings, owner="first")
    assert len(payloads) == 3

    # And when the server is back, it is continued: each image is there once
    s3.reset()
    s3.start()
    with ledger.transaction() as connection:
        connection.execute(batches.update().values(not_before=None))
    assert take_in_next(ledger, bucket_store, publisher, settings, owner="second")
    assert names_of(ledger, bucket_store, job_id) == names


@pytest.fixture
def bucket_harness(
    ledger: Ledger, settings: Settings, bucket_store: Store, light_model: bytes
) -> Iterator[Harness]:
    """Return a worker's context whose store is a bucket."""
    settings = settings.model_copy(update={"store_url": bucket_store.url})
    with WorkerContext(settings, processes=1) as context:
        yield make_harness(ledger, bucket_store, context, light_model)


@on_one_database
def test_a_worker_waits_for_its_bucket(bucket_harness: Harness, s3: S3Server) -> None:
    # Given small jobs, and a server that stops when their payloads are read
    jobs = [bucket_harness.submit([picture]) for picture in digits(12)]
    s3.before = lambda _request: s3.stop()
    assert bucket_harness.classify() == 0

    # When it is back, Then each image gets its label, although none was claimed for the first time
    s3.reset()
    s3.start()
    bucket_harness.classify_all()
    assert [bucket_harness.labels(job_id) for job_id in jobs] == [[str(number % 10)] for number in range(12)]


@on_one_database
def test_payloads_of_small_jobs_are_read_at_the_same_time(bucket_harness: Harness, s3: S3Server) -> None:
    jobs = [bucket_harness.submit([picture]) for picture in digits(12)]
    s3.reset()
    s3.delay = 0.05
    assert bucket_harness.classify() == 12
    assert s3.at_once > 4
    assert [bucket_harness.labels(job_id) for job_id in jobs] == [[str(number % 10)] for number in range(12)]
