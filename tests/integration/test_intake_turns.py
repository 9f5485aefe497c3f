"""Batches of several projects are taken in side by side: slow servers keep no other project waiting."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.batches import add_batch, claim_intake
from jobs.ledger.api.files import add_file, file_key
from jobs.ledger.api.projects import create_project
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.submission import open_job
from jobs.models.model import Model
from jobs.options import JobOptions
from jobs.queue import Publisher
from jobs.schema import JobState, batches, jobs
from jobs.settings import Settings
from jobs.storage.store import Store
from producer import intake as intake_module
from producer.intake import IntakeProcess
from producer.sources import manifest
from tests.console import Home, until
from tests.intake import take_in_next
from tests.web import Server, web_server


@pytest.fixture
def tarpit() -> Iterator[str]:
    """Return the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def web() -> Iterator[Server]:
    with web_server() as server:
        yield server


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"private_hosts": ("127.0.0.1",)})


Commit = Callable[..., str]


@pytest.fixture
def commit(ledger: Ledger, store: Store, champion: Model) -> Commit:
    """Return a function: `commit("http://...", project="a")` commits a batch of links, as the API does."""

    def commit(*links: str, project: str) -> str:
        job_id, file_id = new_id(), new_id()
        store.put(file_key(file_id), "".join(f"{json.dumps({'url': link})}\n" for link in links).encode())
        file = {"name": "urls.jsonl", "purpose": "batch", "size": 1, "sha256": "0" * 64}
        with ledger.transaction() as connection:
            with contextlib.suppress(Conflict):
                create_project(connection, project)
            add_file(connection, file_id, project=project, **file)
            open_job(connection, job_id, JobOptions(project=project), model_id=champion.id)
            add_batch(connection, job_id, request={}, file_id=file_id)
        return job_id

    return commit


def row(ledger: Ledger, job_id: str) -> Any:
    """Return the state of a job and of its intake, with what both count."""
    columns = *jobs.c["state", "total", "error"], *batches.c["attempts", "unanswered"]
    query = sa.select(*columns, batches.c.state.label("intake")).join_from(jobs, batches)
    with ledger.reading() as connection:
        return connection.execute(query.where(jobs.c.id == job_id)).one()


def is_read(ledger: Ledger, job_id: str) -> bool:
    return bool(row(ledger, job_id).intake == "claimed")


def is_running(ledger: Ledger, job_id: str) -> bool:
    return bool(row(ledger, job_id).state == JobState.RUNNING)


def test_links_that_never_answer_keep_no_other_project_waiting(
    home: Home, ledger: Ledger, commit: Commit, tarpit: str, tmp_path: Path
) -> None:
    # Given many batches of one project with links that never answer, of which each intake process reads one
    links = [f"{tarpit}/{number}.png" for number in range(2_000)]
    slow = [commit(*links, project="a") for _ in range(10)]
    with home.started("serve", "--listen", "127.0.0.1:0", log=tmp_path / "log"):
        for job_id in slow[:2]:
            until(partial(is_read, ledger, job_id), "the batch is being read")
        time.sleep(2)  # a second batch would have begun by now: a process looks twice a second
        assert [is_read(ledger, job_id) for job_id in slow] == [True] * 2 + [False] * 8

        # When another project's image arrives, Then it is taken in within seconds
        quick = commit("data:,image", project="b")
        until(partial(is_running, ledger, quick), "the image is taken in", seconds=10)

        # When a slow batch is cancelled, Then its reader sees that within seconds, although no link answers
        with ledger.transaction() as connection:
            end_job(connection, slow[0], JobState.CANCELLED)
        until(lambda: row(ledger, slow[0]).intake == "done", "it is not read any more", seconds=10)
        until(partial(is_read, ledger, slow[2]), "the next one is read", seconds=10)

    # When the server is stopped, Then those that were read wait for the next one
    for job_id in slow[1:3]:
        left = row(ledger, job_id)
        assert (left.state, left.intake, left.attempts, left.total) == (JobState.RECEIVING, "pending", 0, 0)


def test_projects_are_served_in_turns(ledger: Ledger, commit: Commit) -> None:
    # Given batches of two projects, and then of a third one
    for project in "aaaabb":
        commit("data:,image", project=project)

    def claimed() -> str:
        with ledger.transaction() as connection:
            intake = claim_intake(connection, owner="test")
        assert intake is not None
        return intake.project

    # When they are claimed, Then the projects take turns, and the new one earned nothing by coming late
    assert [claimed() for _ in range(3)] in (list("aba"), list("bab"))
    for _ in range(2):
        commit("data:,image", project="c")
    assert [claimed() for _ in range(2)] in (["c", "a"], ["c", "b"])


def test_if_all_seats_are_taken_projects_take_turns(
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    settings: Settings,
    commit: Commit,
    tarpit: str,
    web: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a process with one seat, and a batch in it that waits for a link after two that were answered
    monkeypatch.setattr(intake_module, "SEATS", 1)
    slow = commit(f"http://{web.host}/1", f"http://{web.host}/2", f"{tarpit}/3", project="a")
    process = IntakeProcess(ledger, store, lambda: publisher, settings, owner="test")
    with contextlib.closing(process):
        assert process.begin_next()
        until(lambda: len(web.asked) == 2, "two links have answered")
        time.sleep(1)  # it waits for the third: the time that is checked below

        # When a batch of another project waits, Then the seat stays taken for its time
        quick = commit("data:,image", project="b")
        assert not process.begin_next()
        time.sleep(1)  # a turn that is over ends within a second
        assert is_read(ledger, slow)

        # And then the first batch gives it up, with what has arrived, and without a counted attempt
        monkeypatch.setattr(intake_module, "SEAT_SECONDS", 0.0)
        until(process.begin_next, "the seat is free")
        until(partial(is_running, ledger, quick), "the other batch is taken in")
        left = row(ledger, slow)
        assert (left.state, left.intake, left.attempts, left.total) == (JobState.RECEIVING, "pending", 0, 2)
        assert left.unanswered > 1

        # And it is continued after the other
        until(process.begin_next, "the seat is free again")
        assert is_read(ledger, slow)


def test_a_batch_whose_links_never_answer_fails_with_words(
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    settings: Settings,
    commit: Commit,
    tarpit: str,
    web: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a limit of seconds, and links of which only the first answers
    monkeypatch.setattr(manifest, "_SECONDS", 0.5)
    monkeypatch.setattr(intake_module, "MAX_UNANSWERED_SECONDS", 3.0)
    job_id = commit(f"http://{web.host}/1", *(f"{tarpit}/{number}" for number in range(500)), project="a")

    # When the batch is read, Then it fails long before its last link, and keeps what was read
    assert take_in_next(ledger, store, publisher, settings, owner="test")
    failed = row(ledger, job_id)
    assert (failed.state, failed.intake) == (JobState.FAILED, "done")
    assert 1 < failed.total < 400
    assert "No server of its links has answered" in failed.error


def test_a_manifest_with_too_many_rows_fails_before_a_link_is_followed(
    ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, commit: Commit, web: Server
) -> None:
    settings = settings.model_copy(update={"max_job_images": 2})
    job_id = commit(*(f"http://{web.host}/{number}" for number in range(3)), project="a")
    assert take_in_next(ledger, store, publisher, settings, owner="test")
    failed = row(ledger, job_id)
    assert (failed.state, failed.total) == (JobState.FAILED, 0)
    assert "has more than 2 rows" in failed.error
    assert not web.asked
