"""What clients of the HTTP API see when something goes wrong in the middle."""

from __future__ import annotations

import json
import os
import threading
import time

import httpx
import pytest

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.deliveries import claim_delivery
from jobs.ledger.api.files import add_file, file_key
from jobs.ledger.api.webhooks import secret_of_batches
from jobs.ledger.jobs.queries import PAGE_ROWS, job_status
from jobs.ledger.jobs.submission import open_job
from jobs.models.model import Model
from jobs.options import DEFAULT_PROJECT
from jobs.queue import Publisher
from jobs.schema import JobState, db_now, jobs, predictions
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client.purging import Purge
from tests.conftest import JobMaker, Worker
from tests.intake import take_in_next
from tests.outcomes import Outcome, best


def add_done_job(ledger: Ledger, model: Model, images: int) -> str:
    """Add a finished job with so many predictions, and no chunk: as if it was just being purged."""
    job_id = new_id()
    with ledger.transaction() as connection:
        open_job(connection, job_id, model_id=model.id)
        connection.execute(
            jobs.update()
            .where(jobs.c.id == job_id)
            .values(state=JobState.DONE, total=images, succeeded=images, finished_at=db_now())
        )
        connection.execute(
            predictions.insert(),
            [
                {"job_id": job_id, "index": index, "name": f"{index}.png", "label": "7", "confidence": 0.9}
                for index in range(images)
            ],
        )
    return job_id


def test_output_that_cannot_be_read_to_its_end_does_not_look_complete(
    api: httpx.Client, ledger: Ledger, champion: Model
) -> None:
    job_id = add_done_job(ledger, champion, PAGE_ROWS + 10)
    with pytest.raises(httpx.RemoteProtocolError):
        api.get(f"/files/file-{job_id}-output/content")
    # Whatever fails before the first line is an answer of its own
    short = add_done_job(ledger, champion, 10)
    assert api.get(f"/files/file-{short}-output/content").status_code == 409


def test_the_output_of_no_batch_is_no_file(api: httpx.Client) -> None:
    answer = api.get("/files/file-06h0w4r0rf0dkckt-output")
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        "There is no file 'file-06h0w4r0rf0dkckt-output': `GET /v1/files` lists them.",
    )


@pytest.mark.usefixtures("champion")
def test_results_have_the_most_probable_classes_if_they_were_asked_for(
    api: httpx.Client, ledger: Ledger, make_job: JobMaker, worker: Worker
) -> None:
    # Given a batch with alternatives, one of whose images cannot be read
    job = make_job([2])
    top = best("7", "1")
    outcomes = [Outcome("a.png", "7", 0.5, alternatives=top), Outcome("b.png", None, None, "corrupt")]
    worker.work(job.chunks[0], outcomes)

    # Then its results and its output have them
    found = api.get(f"/batches/{job.id}/results").json()
    assert [(each["label"], each["top"]) for each in found] == [("7", top), (None, None)]
    [line] = api.get(f"/files/file-{job.id}-output/content").text.splitlines()
    assert json.loads(line)["response"]["body"] == {"label": "7", "confidence": 0.5, "top": top}

    # And a request says how many: no more than ten
    uploaded = api.post("/files", data={"purpose": "batch"}, files={"file": b"an image"}).json()
    wanted = {"input_file_id": uploaded["id"]}
    assert api.post("/batches", json={**wanted, "top_k": 11}).status_code == 422
    batch = api.post("/batches", json={**wanted, "top_k": 10}).json()
    with ledger.reading() as connection:
        assert job_status(connection, batch["id"]).top_k == 10


@pytest.mark.usefixtures("champion")
def test_one_idempotency_key_is_one_batch_also_at_the_same_time(api: httpx.Client, ledger: Ledger) -> None:
    uploaded = api.post("/files", data={"purpose": "batch"}, files={"file": b"an image"}).json()
    found: list[str] = []

    def create() -> None:
        answer = api.post(
            "/batches", json={"input_file_id": uploaded["id"]}, headers={"Idempotency-Key": "monday"}
        )
        found.append(answer.json().get("id", answer.text))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    with ledger.reading() as connection:
        assert len(connection.execute(jobs.select()).all()) == 1
    # While it waits for its images to be read, the file cannot be deleted; afterwards it can
    assert api.delete(f"/files/{uploaded['id']}").status_code == 409
    assert api.post(f"/batches/{found[0]}/cancel").json()["status"] == "cancelled"
    assert api.delete(f"/files/{uploaded['id']}").json()["deleted"] is True
    assert api.get(f"/files/{uploaded['id']}").status_code == 404


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"input_file_id": "file-\0"}, 422),
        ({"input_file_id": "x" * 65}, 422),
        ({"input_file_id": "file-06h0w4r0rf0dkckt"}, 404),
        ({"input_file_id": "file-06h0w4r0rf0dkckt", "metadata": {"a": "\0"}}, 422),
        ({"input_file_id": "file-06h0w4r0rf0dkckt", "urls": ["http://example.org/a"]}, 422),
        ({}, 422),
        ({"input_file_id": None, "source_url": "s3://bucket/photos/"}, 422),
        ({"urls": []}, 422),
        ({"urls": ["a.png"]}, 422),
        ({"urls": ["http://example.org/"] * 10_001}, 422),
        ({"source_url": "photos/"}, 422),
        ({"source_url": "file:///etc/"}, 403),
        ({"source_url": "s3://bucket/photos/"}, 403),
        ({"source_url": "http://169.254.169.254/latest/"}, 403),
        ({"urls": ["http://example.org/a"], "by_reference": True}, 403),
    ],
)
def test_a_malformed_batch_is_refused(api: httpx.Client, wanted: dict[str, object], status: int) -> None:
    answer = api.post("/batches", json=wanted)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize(
    ("url", "detail"),
    [
        (
            "http://example.invalid/",
            "must begin with https://, or LABELMILL_PRIVATE_HOSTS must name its host",
        ),
        ("https://169.254.169.254/latest/", "not on the public internet"),
        ("https://user:secret@example.org/", "a user or a password"),
        ("file:///etc/passwd", "http://"),
    ],
)
def test_a_webhook_to_a_forbidden_address_is_refused(api: httpx.Client, url: str, detail: str) -> None:
    uploaded = api.post("/files", data={"purpose": "batch"}, files={"file": b"an image"}).json()
    answer = api.post("/batches", json={"input_file_id": uploaded["id"], "webhook_url": url})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert detail in answer.json()["detail"]
    assert "secret" not in answer.text


@pytest.mark.usefixtures("champion")
def test_a_batch_is_reported_to_its_webhook_as_the_api_shows_it(api: httpx.Client, ledger: Ledger) -> None:
    # Given a batch with a receiver of its own, whose secret is known
    url = "https://receiver.invalid/hook"
    uploaded = api.post("/files", data={"purpose": "batch"}, files={"file": b"an image"}).json()
    wanted = {"input_file_id": uploaded["id"], "webhook_url": url, "metadata": {"album": "7"}}
    batch_id = api.post("/batches", json=wanted).json()["id"]

    # When it is cancelled, Then the receiver gets it as the API shows it, but for the rate
    shown = api.post(f"/batches/{batch_id}/cancel").json()
    with ledger.transaction() as connection:
        claimed = claim_delivery(connection)
        assert claimed is not None
        assert claimed.secrets == (secret_of_batches(connection, DEFAULT_PROJECT),)
    message = json.loads(claimed.body)
    assert (claimed.url, message["type"]) == (url, "batch.cancelled")
    missing = {
        "endpoint",
        "completion_window",
        "paused",
        "retry_of",
        "submitted_by",
        "job",
        "rate",
        "eta_seconds",
    }
    assert message["data"] == {name: value for name, value in shown.items() if name not in missing}
    assert message["data"]["input_file_id"] == uploaded["id"]


@pytest.mark.usefixtures("champion")
def test_a_retry_keeps_the_metadata_and_the_webhook(
    api: httpx.Client, ledger: Ledger, store: Store, publisher: Publisher, settings: Settings
) -> None:
    # Given a batch with a receiver of its own that was cancelled before its image was classified
    uploaded = api.post("/files", data={"purpose": "batch"}, files={"file": b"an image"}).json()
    url, metadata = "https://receiver.invalid/hook", {"album": "7"}
    wanted = {"input_file_id": uploaded["id"], "webhook_url": url, "metadata": metadata}
    batch_id = api.post("/batches", json=wanted).json()["id"]
    assert take_in_next(ledger, store, publisher, settings, owner="intake")
    api.post(f"/batches/{batch_id}/cancel")
    # When it is retried, Then the new batch is described alike, and its end is reported to the same receiver
    retried = api.post(f"/batches/{batch_id}/retry").json()
    assert (retried["metadata"], retried["status"]) == (metadata, "validating")
    assert take_in_next(ledger, store, publisher, settings, owner="intake")
    assert api.get(f"/batches/{retried['id']}").json()["request_counts"]["total"] == 1
    api.post(f"/batches/{retried['id']}/cancel")
    with ledger.transaction() as connection:
        sent = [claim_delivery(connection) for _ in range(2)]
    assert {(each.url, json.loads(each.body)["data"]["id"]) for each in sent if each is not None} == {
        (url, batch_id),
        (url, retried["id"]),
    }


def test_bodies_that_are_too_large_or_no_form_are_refused(api: httpx.Client, store: Store) -> None:
    as_json = {"Content-Type": "application/json"}
    assert api.post("/batches", content=b" " * 2_000_000, headers=as_json).status_code == 413
    assert api.post("/batches", content=b"{}").status_code == 415
    assert api.post("/batches", content=iter([b"{}"])).status_code == 411
    assert api.post("/files", content=b"no form").status_code == 415
    assert api.post("/files", data={"purpose": "batch"}, files={"other": b"x"}).status_code == 422
    assert api.post("/files", data={"purpose": "vision"}, files={"file": b"x"}).status_code == 422
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    cut = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nbytes'
    assert api.post("/files", content=cut, headers=form).status_code == 400
    # Nothing of them is left
    assert store.files("files") == []


def test_what_an_interrupted_upload_leaves_is_purged(ledger: Ledger, store: Store) -> None:
    # Given a file with a row, one without, and one that never got its name, all of last week
    kept, lost = new_id(), new_id()
    with ledger.transaction() as connection:
        file = {"name": "a.zip", "purpose": "batch", "size": 1, "sha256": "0" * 64}
        add_file(connection, kept, project=DEFAULT_PROJECT, **file)
    for name in (kept, lost, f".{lost}.0123abcd"):
        store.put(file_key(name), b"x")
        week_ago = time.time() - 7 * 24 * 3600
        os.utime(store.folder / file_key(name), (week_ago, week_ago))
    young = new_id()
    store.put(file_key(young), b"x")
    # When a purge runs, then what nothing needs is gone, unless it is young
    purge = Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None)
    purge.strays()
    assert set(store.files("files")) == {kept, young}
    assert purge.purged.strays == 2
