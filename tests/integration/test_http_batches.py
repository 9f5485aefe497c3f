"""What applications do with batches and files over HTTP apart from creating and following them."""

from __future__ import annotations

import httpx
import pytest
import sqlalchemy as sa

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.batches import add_batch
from jobs.ledger.api.projects import create_project
from jobs.ledger.jobs.queries import latest_jobs
from jobs.ledger.jobs.submission import open_job
from jobs.models.model import Model
from jobs.options import JobOptions
from jobs.queue import Publisher
from jobs.schema import audit, metadata, predictions, purges
from jobs.settings import Settings
from jobs.storage.store import Store
from tests.conftest import Job, JobMaker, Worker
from tests.intake import take_in_next
from tests.outcomes import Outcome


def upload(api: httpx.Client, content: bytes = b"0123456789") -> str:
    form = {"data": {"purpose": "batch"}, "files": {"file": ("a.png", content)}}
    return str(api.post("/files", **form).json()["id"])


@pytest.mark.usefixtures("champion")
def test_deleting_a_batch_leaves_nothing_of_it(
    api: httpx.Client, ledger: Ledger, store: Store, publisher: Publisher, settings: Settings
) -> None:
    # Given a batch whose image was read, and another one
    file_id, other = upload(api), upload(api, b"other")
    wanted = {"input_file_id": file_id, "metadata": {"person": "7"}}
    batch_id = api.post("/batches", json=wanted).json()["id"]
    assert take_in_next(ledger, store, publisher, settings, owner="intake")

    # When it is deleted while it runs, then that is refused
    refused = api.delete(f"/batches/{batch_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "cancel it first" in refused.json()["detail"]

    # When it has ended, then its payloads, its input and its rows go
    api.post(f"/batches/{batch_id}/cancel")
    assert api.delete(f"/batches/{batch_id}").json() == {"id": batch_id, "object": "batch", "deleted": True}
    assert store.folders("payloads") == []
    assert store.files("files") == [other.removeprefix("file-")]
    assert api.get(f"/batches/{batch_id}").status_code == api.get(f"/files/{file_id}").status_code == 404
    with ledger.reading() as connection:
        for table in metadata.tables.values():
            if "job_id" in table.c:
                assert connection.scalar(sa.select(table.c.job_id).limit(1)) is None, table.name
        # And that is recorded
        assert connection.scalar(sa.select(purges.c.id)) is not None
        done = sa.select(audit.c.object).where(audit.c.action == "delete batch")
        assert list(connection.scalars(done)) == [batch_id]
    assert api.delete(f"/batches/{batch_id}").status_code == 404


def test_deleting_a_batch_deletes_its_predictions(
    api: httpx.Client, ledger: Ledger, make_job: JobMaker, worker: Worker
) -> None:
    job: Job = make_job([2])
    worker.work(job.chunks[0], [Outcome("a.png", "7", 0.9), Outcome("b.png", None, None, "corrupt")])
    assert api.delete(f"/batches/{job.id}").status_code == 200
    with ledger.reading() as connection:
        assert connection.scalar(sa.select(predictions.c.index)) is None


def add_batches(ledger: Ledger, model: Model, *albums: str, project: str = "default") -> list[str]:
    """Add a batch for each album in its metadata. Return their ids."""
    ids = []
    for album in albums:
        ids.append(new_id())
        with ledger.transaction() as connection:
            open_job(connection, ids[-1], JobOptions(project=project), model_id=model.id)
            pairs = {"album": album, "equation": "a=b"}
            add_batch(connection, ids[-1], request={"metadata": pairs}, file_id=None)
    return ids


def test_batches_are_found_by_their_metadata(api: httpx.Client, ledger: Ledger, champion: Model) -> None:
    first, _, third, fourth = add_batches(ledger, champion, "7", "8", "7", "7")
    with ledger.transaction() as connection:
        create_project(connection, "birds")
    add_batches(ledger, champion, "7", project="birds")  # which is not for this key

    def found(pair: str, **more: object) -> list[str]:
        answer = api.get("/batches", params={"metadata": pair, **more})
        return [each["id"] for each in answer.json()["data"]]

    assert found("album=7") == [fourth, third, first]
    assert found("album=7", limit=1) == [fourth]
    assert found("album=7", limit=1, after=fourth) == [third]
    assert found("album=7", state="running") == found("album=") == found("albu=7") == []
    assert len(found("equation=a=b")) == 4
    for malformed in ("album", "=7", "album=\0"):
        assert api.get("/batches", params={"metadata": malformed}).status_code == 422


def test_finding_a_page_by_metadata_reads_no_more_than_the_page(ledger: Ledger, champion: Model) -> None:
    # Given many batches with a pair
    ids = add_batches(ledger, champion, *["7"] * 60)
    # When a page of them is read, then the index gives them in order: nothing is sorted, no table scanned
    with ledger.transaction() as connection:
        if not ledger.is_sqlite:  # for a table that fits into a page, it would rather scan
            connection.exec_driver_sql("ANALYZE")
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plans: list[str] = []
        explain = "EXPLAIN QUERY PLAN" if ledger.is_sqlite else "EXPLAIN"

        @sa.event.listens_for(connection, "before_cursor_execute")
        def _explain(
            _c: object, cursor: sa.engine.interfaces.DBAPICursor, statement: str, values: object, *_: object
        ) -> None:
            cursor.execute(f"{explain} {statement}", values)  # type: ignore[arg-type]
            plans.extend(str(row) for row in cursor.fetchall())

        found = latest_jobs(connection, limit=3, project="default", pair=("album", "7"))
    assert [each.id for each in found] == ids[:-4:-1]
    plan = "\n".join(plans)
    assert "ix_batch_metadata_project_name_value_job_id" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan
    assert "SCAN" not in plan.upper().replace("INDEX SCAN", "").replace("INDEX ONLY SCAN", "")


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        (None, 200, b"0123456789", None),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),  # malformed, or several: as if it was not there
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
    ],
)
def test_a_part_of_a_file_can_be_read(
    api: httpx.Client, asked: str | None, status: int, content: bytes | None, content_range: str | None
) -> None:
    path = f"/files/{upload(api)}/content"
    answer = api.get(path, headers={} if asked is None else {"Range": asked})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, content_range)
    if content is not None:
        assert (answer.content, answer.headers["content-length"]) == (content, str(len(content)))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_headers_of_a_file_say_what_it_is(api: httpx.Client) -> None:
    path = f"/files/{upload(api)}/content"
    head = api.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["content-length"], head.headers["accept-ranges"]) == ("10", "bytes")
    # A download can be continued if the file is still the same
    tag = head.headers["etag"]
    assert api.get(path, headers={"Range": "bytes=8-", "If-Range": tag}).content == b"89"
    assert api.get(path, headers={"Range": "bytes=8-", "If-Range": '"other"'}).content == b"0123456789"
    assert api.head("/files/file-06h0w4r0rf0dkckt/content").status_code == 404


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_first_page_says_where_things_are(api: httpx.Client) -> None:
    start = httpx.get(api.base_url.join("/"), timeout=60).json()  # without a key
    assert start["name"] == "Labelmill"
    assert {"/v1/batches", "/v1/files", "/v1/models", "/healthz"} <= set(start["resources"])
    for path in (start["documentation"], *start["resources"]):
        assert api.get(api.base_url.join(path)).status_code == 200, path
