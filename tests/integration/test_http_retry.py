"""A retry over HTTP is a batch: the request commits it, and an intake process copies the images."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.ledger import Ledger
from jobs.queue import Publisher
from jobs.schema import ChunkState
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client.purging import Purge
from tests.conftest import Worker
from tests.faults.test_intake import names_of
from tests.intake import take_in_next
from tests.integration.test_retry import outcomes
from tests.ledger_probes import chunks_of

pytestmark = pytest.mark.usefixtures("champion")

NAMES = [f"{number}.png" for number in range(10, 60)]

CHUNK_IMAGES = 10

Intake = Callable[..., bool]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    update = {"chunk_images": CHUNK_IMAGES, "reference_roots": (str(tmp_path),)}
    return settings.model_copy(update=update)


@pytest.fixture
def intake(ledger: Ledger, store: Store, publisher: Publisher, settings: Settings) -> Intake:
    """Return a function: `intake(max_chunks=2)` takes in the next batch, or two chunks of it."""
    return partial(take_in_next, ledger, store, publisher, settings, owner="test")


@pytest.fixture
def stopped(api: httpx.Client, intake: Intake, ledger: Ledger, worker: Worker, tmp_path: Path) -> Callable:
    """Return a function: it makes a batch of NAMES that was cancelled when 21 were read.

    Nine of them have a label, and one an error. The source is a file, a folder or URLs.
    """

    def stopped(kind: str = "file") -> dict[str, Any]:
        body = io.BytesIO()
        with zipfile.ZipFile(body, "w") as file:
            for name in NAMES:
                file.writestr(name, f"pixels {name}")
                (tmp_path / name).write_text(f"pixels {name}")
        if kind == "file":
            form = {"data": {"purpose": "batch"}, "files": {"file": ("a.zip", body.getvalue())}}
            source = {"input_file_id": api.post("/files", **form).json()["id"]}
        elif kind == "folder":
            source = {"source_url": f"file://{tmp_path}"}
        else:
            source = {"urls": [f"file://{tmp_path}/{name}" for name in NAMES]}
        batch = api.post("/batches", json=source).json()
        assert intake(max_chunks=2)
        [chunk, *_] = chunks_of(ledger, batch["id"], ChunkState.PENDING)
        worker.work(chunk, outcomes(0, [3], CHUNK_IMAGES))
        return api.post(f"/batches/{batch['id']}/cancel").json()

    return stopped


def shown(api: httpx.Client, batch: dict[str, Any]) -> dict[str, Any]:
    return api.get(f"/batches/{batch['id']}").json()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_retry_copies_the_images_and_reads_those_that_were_never_read(
    api: httpx.Client,
    ledger: Ledger,
    store: Store,
    intake: Intake,
    stopped: Callable[..., dict[str, Any]],
    kind: str,
) -> None:
    # Given a batch that was cancelled when 21 of its 50 images were read, and one of them has an error
    batch = stopped(kind)
    assert (batch["status"], batch["request_counts"]["total"]) == ("cancelled", 21)

    # When it is retried, Then the new batch is committed before anything is copied
    answer = api.post(f"/batches/{batch['id']}/retry", headers={"Idempotency-Key": "monday"})
    retried = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/batches/{retried['id']}")
    assert (retried["status"], retried["retry_of"]) == ("validating", batch["id"])
    assert retried["request_counts"]["total"] == 0

    # And the same key gives the same retry, but not for another batch
    again = api.post(f"/batches/{batch['id']}/retry", headers={"Idempotency-Key": "monday"})
    assert again.json()["id"] == retried["id"]
    other = api.post(f"/batches/{retried['id']}/retry", headers={"Idempotency-Key": "monday"})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")

    # When processes take it in, each a chunk, Then each image without a label is there once, with its name
    while intake(max_chunks=1):
        pass
    assert names_of(ledger, store, retried["id"]) == [NAMES[3], *NAMES[10:]]
    assert shown(api, retried)["status"] == "in_progress"


def test_a_retry_of_a_retry_that_was_cancelled_reads_the_rest(
    api: httpx.Client, ledger: Ledger, store: Store, intake: Intake, stopped: Callable[..., dict[str, Any]]
) -> None:
    # Given a retry that was cancelled: of 41 images, it has the first 21
    batch = stopped()
    first = api.post(f"/batches/{batch['id']}/retry").json()
    assert intake(max_chunks=2)
    assert api.post(f"/batches/{first['id']}/cancel").json()["request_counts"]["total"] == 21

    # When it is retried, Then all 41 are there
    second = api.post(f"/batches/{first['id']}/retry").json()
    while intake(max_chunks=1):
        pass
    assert names_of(ledger, store, second["id"]) == [NAMES[3], *NAMES[10:]]


@pytest.mark.parametrize("kind", ["file", "urls"])
def test_what_cannot_be_read_any_more_is_said(
    api: httpx.Client,
    ledger: Ledger,
    store: Store,
    intake: Intake,
    stopped: Callable[..., dict[str, Any]],
    kind: str,
) -> None:
    # Given a batch that was cancelled while it was read, and whose file was deleted then, as URLs always are
    batch = stopped(kind)
    if kind == "file":
        assert api.delete(f"/files/{batch['input_file_id']}").status_code == 200

    # When it is retried, Then the answer says that the rest is missing
    refused = api.post(f"/batches/{batch['id']}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "when 21 of its images had been read, and the rest cannot be read" in refused.json()["detail"]

    # And its errors alone can be retried
    retried = api.post(f"/batches/{batch['id']}/retry", params={"failed_only": True}).json()
    assert intake()
    [name] = names_of(ledger, store, retried["id"])
    assert name.endswith(NAMES[3])
    assert shown(api, retried)["status"] == "in_progress"


def test_a_retry_whose_images_are_purged_before_they_are_copied_fails_with_words(
    api: httpx.Client, ledger: Ledger, store: Store, intake: Intake, stopped: Callable[..., dict[str, Any]]
) -> None:
    batch = stopped()
    retried = api.post(f"/batches/{batch['id']}/retry").json()
    Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None).payloads(days=-1)
    assert intake()
    failed = shown(api, retried)
    assert failed["status"] == "failed"
    assert "was purged while its images were being submitted again" in failed["errors"]["data"][0]["message"]
