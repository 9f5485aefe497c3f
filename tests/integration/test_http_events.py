"""The progress of a batch as server-sent events: each state once, and other requests are not held up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice, pairwise
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.keys import ApiKey, Role, create_key, revoke_key
from jobs.ledger.jobs.submission import open_job
from jobs.models.model import Model
from jobs.schema import JobState, db_now, jobs
from jobs.settings import Settings
from labelmill.server import access, batches, events
from labelmill.server.events import Readings
from labelmill.server.reading import Reading
from labelmill.server.schemas import BatchObject
from tests.console import until
from tests.serving import lasting, served_here

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@pytest.fixture
def job_id(ledger: Ledger, champion: Model) -> str:
    job_id = new_id()
    with ledger.transaction() as connection:
        open_job(connection, job_id, model_id=champion.id)
    return job_id


def new_key(ledger: Ledger) -> tuple[ApiKey, dict[str, str]]:
    """Return a new key, and the headers of a request with it."""
    with ledger.transaction() as connection:
        key, secret = create_key(connection, "another", Role.SUBMIT)
    return key, {"Authorization": f"Bearer {secret}"}


def change(ledger: Ledger, job_id: str, **values: Any) -> None:
    with ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(**values))


def events_of(answer: httpx.Response) -> Iterator[dict[str, str]]:
    """Yield the events of a stream; a comment has the field ''."""
    event: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        else:
            yield event
            event = {}


def test_each_state_is_sent_once(api: httpx.Client, ledger: Ledger, job_id: str) -> None:
    # Given a client that follows a batch
    url = f"/batches/{job_id}/events"
    with api.stream("GET", url) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events_of(answer)
        first = next(found)
        assert (first["event"], json.loads(first["data"])["status"]) == ("progress", "validating")
        # When the batch goes on, then so do the events, until it has ended
        change(ledger, job_id, total=9, succeeded=4, state=JobState.RUNNING)
        second = next(found)
        assert (second["event"], json.loads(second["data"])["request_counts"]["completed"]) == ("progress", 4)
        change(ledger, job_id, succeeded=9, state=JobState.DONE, finished_at=db_now())
        [last] = found
        assert (last["event"], json.loads(last["data"])["status"]) == ("completed", "completed")

    # And a client that connects again gets what it has not seen
    with api.stream("GET", url, headers={"Last-Event-ID": second["id"]}) as answer:
        [again] = events_of(answer)
    assert (again["event"], again["id"]) == (last["event"], last["id"])
    assert lasting(json.loads(again["data"])) == lasting(json.loads(last["data"]))
    assert api.get(url, headers={"Last-Event-ID": last["id"]}).status_code == 204
    assert api.get(f"/batches/{new_id()}/events").status_code == 404


@pytest.mark.parametrize("is_down", [False, True], ids=["up", "down"])
def test_requests_at_the_same_time_share_a_reading(
    api: httpx.Client, ledger: Ledger, job_id: str, monkeypatch: pytest.MonkeyPatch, *, is_down: bool
) -> None:
    # Given a request that reads a batch for a long time
    asked, read, go_on = [], [], threading.Event()
    read_batch, of = batches.read_batch, Readings.of

    def noted(readings: Readings, *which: str) -> Reading[BatchObject]:
        asked.append(which)
        return of(readings, *which)

    def held(*arguments: Any) -> Any:
        read.append(read_batch(*arguments))
        assert go_on.wait(30)
        if is_down:
            raise Unavailable("the ledger cannot be reached")
        return read[-1]

    monkeypatch.setattr(Readings, "of", noted)
    monkeypatch.setattr(batches, "read_batch", held)
    with ThreadPoolExecutor(10) as threads:
        url = f"/batches/{job_id}"
        first = threads.submit(api.get, url)
        until(lambda: len(read) == 1, "the batch is being read")

        # When nine others come after a change
        change(ledger, job_id, total=9, succeeded=4, state=JobState.RUNNING)
        others = [threads.submit(api.get, url) for _ in range(9)]
        until(lambda: len(asked) == 10, "all have come")
        go_on.set()
        answers = [each.result() for each in (first, *others)]

    # Then one more reading is enough for all of them, and has the change
    assert len(read) == 2
    if is_down:
        assert [answer.status_code for answer in answers] == [503] * 10
    else:
        completed = [answer.json()["request_counts"]["completed"] for answer in answers]
        assert completed == [0] + [4] * 9


def test_many_streams_are_one_question_a_second(
    api: httpx.Client, ledger: Ledger, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given as many streams as may be open, of one batch
    read_at: list[float] = []
    keys_read_at: list[float] = []
    read_batch, valid_keys = batches.read_batch, access.valid_keys

    def counted_keys(connection: Connection) -> dict[str, ApiKey]:
        keys_read_at.append(time.monotonic())
        return valid_keys(connection)

    def counted(*arguments: Any) -> Any:
        read_at.append(time.monotonic())
        return read_batch(*arguments)

    monkeypatch.setattr(batches, "read_batch", counted)
    monkeypatch.setattr(access, "valid_keys", counted_keys)
    monkeypatch.setattr(events, "_SILENT_SECONDS", 2.0)
    with ExitStack() as stack:
        client = httpx.Client(
            base_url=api.base_url, headers=api.headers, timeout=60, limits=httpx.Limits(max_connections=None)
        )
        stack.enter_context(client)
        url = f"/batches/{job_id}/events"
        streams = [
            events_of(stack.enter_context(client.stream("GET", url, headers=headers)))
            for headers in (new_key(ledger)[1] for _ in range(5))
            for _ in range(20)
        ]
        assert {next(stream)["event"] for stream in streams} == {"progress"}

        # Then no other one may be opened, but other requests are answered
        assert client.get(url).status_code == 503
        assert client.get("/batches").status_code == 200
        keys_read_at.clear()
        since = time.monotonic()

        # And each is kept open by comments, while the batch is read once a second
        assert {tuple(next(stream)) for stream in streams} == {("",)}
        pauses = [after - before for before, after in pairwise(read_at)]
        assert len(pauses) >= 2
        assert min(pauses) > 0.9
        # And the keys less often
        seconds = time.monotonic() - since
        assert len(keys_read_at) <= 1 + seconds / events._KEY_SECONDS

    # And when they are closed, there is room again
    def has_room() -> bool:
        with api.stream("GET", url) as answer:
            return answer.status_code == 200

    until(has_room, "there is room for a stream")


def test_a_key_has_a_number_of_streams(api: httpx.Client, ledger: Ledger, job_id: str) -> None:
    # When a client opens more streams than it may, all at the same time
    url = f"/batches/{job_id}/events"
    _, headers = new_key(ledger)
    all_open = threading.Barrier(30)

    def status(_number: int) -> int:
        with api.stream("GET", url, headers=headers) as answer:
            all_open.wait(30)
            return answer.status_code

    with ThreadPoolExecutor(30) as threads:
        found = list(threads.map(status, range(30)))

    # Then the limit holds, and others are not affected
    assert (found.count(200), found.count(429)) == (20, 10)
    with api.stream("GET", url) as answer:
        assert answer.status_code == 200


def test_a_stream_ends_when_its_key_is_revoked(api: httpx.Client, ledger: Ledger, job_id: str) -> None:
    key, headers = new_key(ledger)
    with api.stream("GET", f"/batches/{job_id}/events", headers=headers) as answer:
        found = events_of(answer)
        next(found)
        with ledger.transaction() as connection:
            revoke_key(connection, key.id)
        assert list(islice(found, 1)) == []  # a stream that goes on sends a comment after 15 seconds


def test_streams_end_when_the_server_stops(settings: Settings, ledger: Ledger, job_id: str) -> None:
    url = f"/batches/{job_id}/events"
    with served_here(settings, ledger) as (server, api), api.stream("GET", url) as answer:
        found = events_of(answer)
        next(found)
        server.should_exit = True
        assert list(found) == []
