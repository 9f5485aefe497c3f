"""A few images are classified at once: a job that is committed before anybody waits for its labels."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.api.webhooks import add_endpoint
from jobs.ledger.jobs.queries import job_status
from jobs.schema import db_now, jobs, webhook_deliveries
from jobs.settings import Settings
from tests.console import until
from tests.serving import lasting, served_here

pytestmark = [
    pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True),
    pytest.mark.usefixtures("champion"),
]

PNG = {"Content-Type": "image/png"}


def files(count: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{number}.png", b"an image")) for number in range(count)]


def test_without_labels_in_time_it_is_a_batch(api: httpx.Client) -> None:
    answer = api.post("/classifications", params={"wait": 0.1}, files=files(16))
    assert answer.status_code == 202
    batch = api.get(answer.headers["location"].removeprefix("/v1")).json()
    assert lasting(batch) == lasting(answer.json())
    assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", 16)


def test_nobody_hears_of_it_but_its_caller(api: httpx.Client, ledger: Ledger) -> None:
    # given an endpoint for all webhooks, a batch of a classification, and an ordinary one
    with ledger.transaction() as connection:
        add_endpoint(connection, "https://example.org/hook")
    mine = api.post("/classifications", params={"wait": 0}, content=b"image", headers=PNG).json()["id"]
    uploaded = api.post("/files", data={"purpose": "batch"}, files={"file": b"an image"}).json()
    other = api.post("/batches", json={"input_file_id": uploaded["id"]}).json()["id"]

    # when both end, then a webhook reports only the ordinary one
    for batch_id in (mine, other):
        api.post(f"/batches/{batch_id}/cancel").raise_for_status()
    with ledger.reading() as connection:
        bodies = connection.scalars(sa.select(webhook_deliveries.c.body)).all()
    assert [json.loads(body)["data"]["id"] for body in bodies] == [other]

    # and the list has only this one, unless all are wanted
    assert [batch["id"] for batch in api.get("/batches").json()["data"]] == [other]
    everything = api.get("/batches", params={"classifications": True}).json()["data"]
    assert {batch["id"] for batch in everything} == {mine, other}


def test_it_asks_for_the_most_probable_classes(api: httpx.Client, ledger: Ledger) -> None:
    wanted = {"wait": 0, "top_k": 3}
    batch = api.post("/classifications", params=wanted, content=b"image", headers=PNG).json()
    with ledger.reading() as connection:
        assert job_status(connection, batch["id"]).top_k == 3


def test_an_idempotency_key_is_one_job(api: httpx.Client, ledger: Ledger) -> None:
    key = PNG | {"Idempotency-Key": "monday"}
    wait = {"wait": 0}
    first, again = (api.post("/classifications", params=wait, content=b"image", headers=key) for _ in "12")
    assert first.status_code == again.status_code == 202
    assert lasting(first.json()) == lasting(again.json())
    assert api.post("/classifications", params=wait, content=b"other", headers=key).status_code == 409
    with ledger.reading() as connection:
        assert len(connection.execute(jobs.select()).all()) == 1


def test_a_waiting_batch_survives_its_key_in_another_call(api: httpx.Client, ledger: Ledger) -> None:
    # Given a batch that has waited for an intake process for longer than a producer may be silent
    key = {"Idempotency-Key": "june"}
    uploaded = api.post("/files", data={"purpose": "batch"}, files={"file": b"an image"}).json()
    batch = api.post("/batches", json={"input_file_id": uploaded["id"]}, headers=key).json()
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(touched_at=db_now(-1000)))
    # When the key is used for something else, Then the batch is still there
    other = api.post("/classifications", params={"wait": 0}, content=b"image", headers=PNG | key)
    assert other.status_code == 202
    assert api.get(f"/batches/{batch['id']}").json()["status"] == "validating"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"content": b"image"}, 415),
        ({"json": {"images": []}}, 415),
        ({"content": b"", "headers": PNG}, 422),
        ({"data": {"other": "x"}, "files": [("other", ("a.png", b"x"))]}, 422),
        ({"files": [("file", ("..", b"x"))]}, 422),
        ({"content": b"cut", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400),
        ({"files": files(17)}, 422),
        ({"content": b"x" * (32 * 1024 * 1024 + 1), "headers": PNG}, 413),
        # Of unknown length
        ({"content": iter([bytes(1024 * 1024)] * 33), "headers": PNG}, 413),
        ({"content": b"image", "headers": PNG, "params": {"wait": 61}}, 422),
        ({"content": b"image", "headers": PNG, "params": {"top_k": 11}}, 422),
        ({"content": b"image", "headers": PNG, "params": {"model": "nothing"}}, 404),
    ],
)
def test_what_cannot_be_classified_is_refused(
    api: httpx.Client, ledger: Ledger, options: dict[str, object], status: int
) -> None:
    answer = api.post("/classifications", **{"params": {"wait": 0}, **options})  # type: ignore[arg-type]
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    with ledger.reading() as connection:
        assert connection.execute(jobs.select()).all() == []


def test_those_who_wait_hold_up_nobody(settings: Settings, ledger: Ledger) -> None:
    with served_here(settings, ledger) as (server, api), ThreadPoolExecutor(40) as pool:
        # Given more waiting requests than the server has threads, with as many for each key as it may have
        with ledger.transaction() as connection:
            keys = [create_key(connection, "waiting", Role.SUBMIT)[1] for _ in "12"]

        def wait(key: str) -> httpx.Response:
            headers = PNG | {"Authorization": f"Bearer {key}"}
            return api.post("/classifications", params={"wait": 60}, content=b"image", headers=headers)

        waiting = [pool.submit(wait, key) for key in keys * 20]

        def all_wait() -> bool:
            with ledger.reading() as connection:
                return len(connection.execute(jobs.select()).all()) == 40

        until(all_wait, "all are committed")
        # Then another request is answered meanwhile
        assert api.get("/batches").status_code == 200
        assert not any(each.done() for each in waiting)
        # And when the server stops, each gets its batch
        server.should_exit = True
        assert {each.result().status_code for each in waiting} == {202}
