"""What clients of the HTTP API see when something goes wrong in the middle."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api_keys import Role, create_key
from jobs.ledger.batches import add_batch
from jobs.ledger.files import add_file, file_key
from jobs.ledger.queries import PAGE_ROWS
from jobs.ledger.submission import open_job
from jobs.model import Model
from jobs.schema import JobState, db_now, jobs, predictions
from jobs.settings import Settings
from jobs.store import Store
from labelmill.purging import Purge
from tests.serving import served_here


@pytest.fixture
def api(settings: Settings, ledger: Ledger, store: Store) -> Iterator[httpx.Client]:  # noqa: ARG001
    """Yield a client of the API, which is served by a thread of this process."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "test", Role.ADMIN)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        served_here(settings) as url,
        httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=60) as client,
    ):
        yield client


def add_done_job(ledger: Ledger, model: Model, images: int) -> str:
    """Add a finished job with so many predictions, and no chunk: as if it was just being purged."""
    job_id = new_id()
    with ledger.transaction() as connection:
        open_job(connection, job_id, model_id=model.id, key=None)
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


def test_a_batch_without_images_has_no_results(api: httpx.Client, ledger: Ledger, champion: Model) -> None:
    job_id = new_id()
    with ledger.transaction() as connection:
        open_job(connection, job_id, model_id=champion.id, key=None)
        add_batch(connection, job_id, request={}, file_id=new_id())
    assert api.get(f"/batches/{job_id}").json()["status"] == "validating"
    assert api.get(f"/batches/{job_id}/results").json() == []


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
        ({"input_file_id": "file-06h0w4r0rf0dkckt", "urls": []}, 422),
    ],
)
def test_a_malformed_batch_is_refused(api: httpx.Client, wanted: dict[str, object], status: int) -> None:
    answer = api.post("/batches", json=wanted)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.headers["x-content-type-options"] == "nosniff"


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
        add_file(connection, kept, name="a.zip", purpose="batch", size=1, sha256="0" * 64)
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
