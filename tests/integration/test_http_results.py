"""Results over HTTP: every format has every row, and an answer that is cut short does not look complete."""

from __future__ import annotations

import csv
import io
import json

import httpx
import pyarrow.parquet as pq
import pytest

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.queries import PAGE_ROWS
from jobs.models.model import Model
from jobs.schema import ChunkState, chunks, db_now, predictions
from tests.integration.test_http_server import add_done_job

FORMATS = ["application/jsonl", "text/csv", "application/vnd.apache.parquet"]


def add_whole_job(ledger: Ledger, model: Model, images: int) -> str:
    """Add a finished job with so many predictions and its chunk."""
    job_id = add_done_job(ledger, model, images)
    row = {"id": new_id(), "job_id": job_id, "first_index": 0, "images": images, "attempts": 1}
    with ledger.transaction() as connection:
        connection.execute(
            chunks.insert().values(
                **row,
                payload="payloads/x",
                payload_digest="0" * 64,
                state=ChunkState.DONE,
                created_at=db_now(),
                finished_at=db_now(),
            )
        )
    return job_id


def rows_of(answer: httpx.Response) -> list[tuple[int, str, str]]:
    """Return index, name and label of each row, whatever the format."""
    kind = answer.headers["content-type"].partition(";")[0]
    if kind == "text/csv":
        found = list(csv.DictReader(io.StringIO(answer.text)))
    elif kind == "application/jsonl":
        found = list(map(json.loads, answer.text.splitlines()))
    else:
        found = pq.read_table(io.BytesIO(answer.content)).to_pylist()
    return [(int(each["index"]), each["name"], each["label"]) for each in found]


@pytest.mark.parametrize("accept", FORMATS)
def test_each_format_has_all_results(api: httpx.Client, ledger: Ledger, champion: Model, accept: str) -> None:
    # Given a job of more than a page
    images = PAGE_ROWS + 10
    job_id = add_whole_job(ledger, champion, images)
    url, headers = f"/batches/{job_id}/results", {"Accept": accept}

    # When its results are asked for without a limit, then all are there
    answer = api.get(url, headers=headers)
    assert answer.headers["content-type"].startswith(accept)
    assert rows_of(answer) == [(index, f"{index}.png", "7") for index in range(images)]

    # And with a limit it is a page, which names the next one
    page = api.get(url, headers=headers, params={"limit": 7, "after": images - 17})
    following = api.get(page.links["next"]["url"].removeprefix("/v1"), headers=headers)
    found = [index for index, _, _ in rows_of(page) + rows_of(following)]
    assert found == list(range(images - 16, images - 2))

    # And only CSV can be escaped for a spreadsheet
    escaped = api.get(url, headers=headers, params={"spreadsheet": True, "limit": 1})
    if accept == "text/csv":
        assert escaped.text.splitlines()[1].startswith('0,"0.png","7",')
    else:
        assert (escaped.status_code, escaped.json()["code"]) == (406, "not_acceptable")
    # Which is what it is for a client without a preference
    assert api.get(url, params={"spreadsheet": True}).headers["content-type"].startswith("text/csv")

    # And a glob that is too long is refused
    refused = api.get(url, params={"name": "*" * 257})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid")

    # And no result is a file without rows
    assert rows_of(api.get(url, headers=headers, params={"label": "3"})) == []


def test_json_lines_are_the_objects_of_a_page(api: httpx.Client, ledger: Ledger, champion: Model) -> None:
    job_id = add_whole_job(ledger, champion, 3)
    lines = api.get(f"/batches/{job_id}/results", headers={"Accept": "application/jsonl"}).text
    assert list(map(json.loads, lines.splitlines())) == api.get(f"/batches/{job_id}/results").json()


@pytest.mark.parametrize("accept", FORMATS)
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_results_that_cannot_be_read_to_their_end_do_not_look_complete(
    api: httpx.Client, ledger: Ledger, champion: Model, accept: str
) -> None:
    job_id = add_done_job(ledger, champion, PAGE_ROWS + 10)
    with pytest.raises(httpx.RemoteProtocolError):
        api.get(f"/batches/{job_id}/results", headers={"Accept": accept})


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_an_output_file_is_counted_once(api: httpx.Client, ledger: Ledger, champion: Model) -> None:
    # Given the size of a finished batch's output
    job_id = add_whole_job(ledger, champion, 100)
    file_id = f"file-{job_id}-output"
    size = api.get(f"/files/{file_id}").json()["bytes"]
    assert size == len(api.get(f"/files/{file_id}/content").content)
    # Then nobody reads its rows again to tell it
    with ledger.transaction() as connection:
        connection.execute(predictions.delete().where(predictions.c.job_id == job_id))
    assert api.get(f"/files/{file_id}").json()["bytes"] == size
    # And it cannot be deleted apart from them
    refused = api.delete(f"/files/{file_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
