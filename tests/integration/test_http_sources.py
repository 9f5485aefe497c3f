"""Batches of manifests, of URLs and of what is below a URL, as far as their images are taken in."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fsspec.implementations.memory import MemoryFileSystem

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.ledger import Ledger
from jobs.network.references import Reference
from jobs.queue import Publisher
from jobs.schema import batch_urls, batches, chunks, db_now, jobs
from jobs.settings import Settings
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from producer.sources import Sources
from tests.intake import take_in_next

pytestmark = pytest.mark.usefixtures("champion")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return an allowed folder, beside a secret one."""
    for name in ("a.png", "deep/b.png", "notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_text(name)
    (tmp_path / "secret.png").write_text("secret")
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    return tmp_path / "photos"


@pytest.fixture
def settings(settings: Settings, photos: Path) -> Settings:
    roots = (str(photos), "memory://bucket/photos")
    return settings.model_copy(update={"reference_roots": roots})


class Intake:
    """Creates batches, and takes their images in as an intake process does."""

    def __init__(
        self, api: httpx.Client, settings: Settings, ledger: Ledger, store: Store, publisher: Publisher
    ) -> None:
        self.api = api
        self.parts = ledger, store, publisher, settings

    def create(self, **body: Any) -> dict[str, Any]:
        """Create a batch, take in its images, and return it."""
        answer = self.api.post("/batches", json=body)
        assert answer.status_code == 202, answer.text
        assert take_in_next(*self.parts, owner="test")
        return self.api.get(answer.headers["location"].removeprefix("/v1")).json()

    def upload(self, name: str, *rows: dict[str, Any]) -> str:
        """Upload JSON lines under a name; return the file's id."""
        return self.upload_bytes(name, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def upload_bytes(self, name: str, content: bytes) -> str:
        """Upload a file; return its id."""
        form = {"data": {"purpose": "batch"}, "files": {"file": (name, content)}}
        return self.api.post("/files", **form).json()["id"]

    def images(self, batch: dict[str, Any]) -> list[tuple[str, object]]:
        """Return the name of each image with its bytes, its error code or its reference's address."""
        ledger, store, *_ = self.parts
        found: list[tuple[str, object]] = []
        query = sa.select(chunks).where(chunks.c.job_id == batch["id"]).order_by(chunks.c.first_index)
        with ledger.reading() as connection:
            for row in connection.execute(query):
                payload = read_payload(store, row.payload, row.payload_digest)
                found += zip(payload.names, map(_plain, payload.contents), strict=True)
        return found


def _plain(content: object) -> object:
    if isinstance(content, ImageError):
        return content.code
    return content.url if isinstance(content, Reference) else content


@pytest.fixture
def intake(
    api: httpx.Client, settings: Settings, ledger: Ledger, store: Store, publisher: Publisher
) -> Intake:
    return Intake(api, settings, ledger, store, publisher)


def test_a_manifest_is_a_batch_with_the_owners_ids(intake: Intake, photos: Path) -> None:
    data = base64.b64encode(b"inline").decode()
    rows = [
        {"custom_id": "inline", "url": f"data:image/png;base64,{data}"},
        {"custom_id": "file", "path": f"{photos}/a.png"},
        {"custom_id": "secret", "path": f"{photos}/../secret.png"},
        {"custom_id": "internal", "url": "http://127.0.0.1/a.png"},
        {"custom_id": "metadata", "url": "http://169.254.169.254/latest/meta-data/"},
    ]
    batch = intake.create(input_file_id=intake.upload("list.jsonl", *rows))
    assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", 5)
    assert intake.images(batch) == [
        ("inline", b"inline"),
        ("file", b"a.png"),
        ("secret", ErrorCode.SOURCE_FORBIDDEN),
        ("internal", ErrorCode.SOURCE_FORBIDDEN),
        ("metadata", ErrorCode.SOURCE_FORBIDDEN),
    ]


def _packed(compression: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("junk.zip", b"junk", "junk.zip is not a ZIP archive that can be read"),
        ("photos.tar.bz2", _packed("bz2"), "photos.tar.bz2 is compressed with bzip2"),
        ("photos.tar.xz", _packed("xz"), "photos.tar.xz is compressed with xz"),
        (
            "list.json",
            b'[{"url": "https://example.org/a.png"}]',
            "list.json is neither an image nor a manifest",
        ),
        (
            "list.jsonl",
            b'[{"url": "https://example.org/a.png"}]',
            "list.jsonl, line 1: it is not a JSON object",
        ),
        ("train-images-idx3-ubyte", b"junk", "train-images-idx3-ubyte is not an IDX file"),
    ],
)
def test_a_file_that_the_command_refuses_fails_the_batch_with_the_same_words(
    intake: Intake, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    # Given a file that the command refuses
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=said) as refused:
        Sources([str(tmp_path / name)])

    # When it is uploaded, then its batch fails, and says the same
    batch = intake.create(input_file_id=intake.upload_bytes(name, content))
    assert (batch["status"], batch["request_counts"]["total"]) == ("failed", 0)
    assert [each["message"] for each in batch["errors"]["data"]] == [
        str(refused.value).replace(f"{tmp_path}/", "")
    ]


def test_an_archive_without_images_fails_the_batch(intake: Intake) -> None:
    batch = intake.create(input_file_id=intake.upload_bytes("empty.zip", b"PK\5\6" + bytes(18)))
    assert batch["errors"]["data"][0]["message"] == "The source contains no images: name another one."


def test_the_content_decides_if_the_name_does_not(intake: Intake) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", b"a")
    for name, found in (("upload", [("a.png", b"a")]), ("a.png", [("a.png", file.getvalue())])):
        batch = intake.create(input_file_id=intake.upload_bytes(name, file.getvalue()))
        assert intake.images(batch) == found
    batch = intake.create(input_file_id=intake.upload_bytes("notes.txt", b"text"))
    assert intake.images(batch) == [("notes.txt", b"text")]


def test_a_manifest_that_cannot_be_read_names_the_line(intake: Intake) -> None:
    rows = [{"custom_id": "a", "url": "http://example.org/"}] * 2
    batch = intake.create(input_file_id=intake.upload("list.jsonl", *rows))
    assert (batch["status"], batch["in_progress_at"]) == ("failed", None)
    [error] = batch["errors"]["data"]
    assert (error["code"], error["line"], error["param"]) == ("batch_failed", 2, None)
    assert error["message"].startswith("list.jsonl, line 2: ")


def test_a_batch_is_in_progress_when_its_images_are_read_and_then_says_how_fast(
    intake: Intake, photos: Path, api: httpx.Client, ledger: Ledger
) -> None:
    # Given a batch whose images have been read
    batch = intake.create(source_url=f"file://{photos}/")
    assert (batch["status"], batch["rate"], batch["eta_seconds"]) == ("in_progress", None, None)
    in_progress_at = batch["in_progress_at"]
    assert in_progress_at == int(datetime.fromisoformat(batch["job"]["submitted_at"]).timestamp())

    # When one of its three images has taken two seconds
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(succeeded=1, started_at=db_now(-2.0)))

    # Then it says how fast that is, and how long the others take
    batch = api.get(f"/batches/{batch['id']}").json()
    assert batch["in_progress_at"] == in_progress_at
    assert batch["rate"] == pytest.approx(0.5, rel=0.5)
    assert batch["eta_seconds"] == pytest.approx(2 / batch["rate"])


def test_urls_are_a_batch_and_are_not_kept_in_the_ledger(
    intake: Intake, ledger: Ledger, photos: Path, bucket: MemoryFileSystem
) -> None:
    # Given images below the roots, and addresses that are not allowed
    bucket.pipe_file("/bucket/photos/a.png", b"in the bucket")
    bucket.pipe_file("/bucket/other.png", b"secret")
    urls = [
        "memory://bucket/photos/a.png",
        f"file://{photos}/a.png",
        "memory://bucket/other.png",
        "file:///etc/passwd",
        f"file://{photos}/link.png",
        "http://[::ffff:7f00:1]/a.png?key=word",
        "gopher://example.org/",
    ]

    # When they are a batch
    batch = intake.create(urls=urls)

    # Then each has its outcome, under its address without what could be a key
    assert intake.images(batch) == [
        (urls[0], b"in the bucket"),
        (urls[1], b"a.png"),
        *((url, ErrorCode.SOURCE_FORBIDDEN) for url in urls[2:5]),
        ("http://[::ffff:7f00:1]/a.png", ErrorCode.SOURCE_FORBIDDEN),
        (urls[6], ErrorCode.SOURCE_FORBIDDEN),
    ]
    with ledger.reading() as connection:
        assert "http" not in json.dumps(connection.scalar(sa.select(batches.c.request)))
        assert connection.scalar(sa.select(sa.func.count()).select_from(batch_urls)) == 0


def test_a_list_of_urls_is_no_file_and_is_deleted_when_nobody_needs_it(
    intake: Intake, ledger: Ledger, store: Store
) -> None:
    def lists() -> int:
        with ledger.reading() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(batch_urls)) or 0

    urls = ["gopher://example.org/a?signature=secret"]
    # Given a batch of URLs that waits, then its list is stored, and no other key can list or read it
    batch = intake.api.post("/batches", json={"urls": urls}).json()
    assert batch["input_file_id"] is None
    assert intake.api.get("/files").json()["data"] == []
    assert lists() == 1

    # When it is cancelled before its images are read, then its list is deleted
    intake.api.post(f"/batches/{batch['id']}/cancel")
    assert not take_in_next(*intake.parts, owner="test")
    assert lists() == 0

    # And a batch that is refused leaves nothing
    refused = intake.api.post("/batches", json={"urls": urls, "model": "nonsense"})
    assert refused.status_code == 404
    assert lists() == 0
    assert store.files("files") == []


def test_the_same_key_with_other_urls_is_a_conflict(intake: Intake) -> None:
    headers = {"Idempotency-Key": "monday"}
    first, again, other = (
        intake.api.post("/batches", json={"urls": [url]}, headers=headers)
        for url in ("gopher://a/", "gopher://a/", "gopher://b/")
    )
    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 409)
    assert first.json()["id"] == again.json()["id"]


@pytest.mark.parametrize("by_reference", [False, True])
def test_what_is_below_a_url_is_a_batch(
    intake: Intake, photos: Path, bucket: MemoryFileSystem, by_reference: bool
) -> None:
    # A folder
    batch = intake.create(source_url=f"file://{photos}/", by_reference=by_reference)
    assert intake.images(batch) == [
        ("a.png", f"{photos}/a.png" if by_reference else b"a.png"),
        ("deep/b.png", f"{photos}/deep/b.png" if by_reference else b"deep/b.png"),
        ("link.png", ErrorCode.SOURCE_FORBIDDEN),
    ]
    assert batch["input_file_id"] is None
    # A prefix in a store
    for name in ("a.png", "deep/b.png", "notes.txt"):
        bucket.pipe_file(f"/bucket/photos/2026/{name}", name.encode())
    prefix = "memory://bucket/photos/2026"
    batch = intake.create(source_url=prefix, by_reference=by_reference)
    assert intake.images(batch) == [
        ("a.png", f"{prefix}/a.png" if by_reference else b"a.png"),
        ("deep/b.png", f"{prefix}/deep/b.png" if by_reference else b"deep/b.png"),
    ]


def test_a_prefix_that_is_not_there_fails_the_batch(intake: Intake, photos: Path) -> None:
    for url in ("memory://bucket/photos/none/", f"file://{photos}/none", f"file://{photos}/a.png"):
        batch = intake.create(source_url=url)
        assert (batch["status"], batch["request_counts"]["total"]) == ("failed", 0)


@pytest.mark.parametrize(
    "beside", ["{photos}2/", "{photos}/../", "{photos}/link.png", "memory://bucket/photos2/"]
)
def test_a_prefix_beside_a_root_is_forbidden(api: httpx.Client, photos: Path, beside: str) -> None:
    url = beside.format(photos=photos)
    answer = api.post("/batches", json={"source_url": url if "://" in url else f"file://{url}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "LABELMILL_REFERENCE_ROOTS" in answer.json()["detail"]
    assert str(photos.parent) not in answer.json()["detail"]
