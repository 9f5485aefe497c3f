"""The first page: what to do first, what waits for a person, and how much was done."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import httpx
import pytest

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.api.projects import create_project
from jobs.ledger.learning.runs import claim_run, finish_run, request_run
from jobs.ledger.metrics import count_by_day
from jobs.models.drift import Shift
from jobs.models.model import Model
from jobs.schema import db_now, jobs
from labelmill.client import Client
from labelmill.web import health, home
from tests.conftest import Job, JobMaker, plans_of
from tests.console import until
from tests.outcomes import Outcome


def text(api: httpx.Client, ledger: Ledger, path: str = "/home") -> str:
    """Return the text of a page."""
    return " ".join(re.sub(r"<[^>]+>", " ", page_of(api, ledger, path).partition("<main")[2]).split())


def page_of(api: httpx.Client, ledger: Ledger, path: str) -> str:
    """Return a page."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "person", Role.REVIEW)
    with httpx.Client(base_url=api.base_url.join("/"), headers={"Accept": "text/html"}) as browser:
        browser.post("/sign-in", data={"key": key})
        answer = browser.get(path)
    assert answer.status_code == HTTPStatus.OK
    return answer.text


def test_a_new_ledger_says_what_to_do_first(api: httpx.Client, ledger: Ledger) -> None:
    told = text(api, ledger)
    assert "Welcome" in told
    assert "labelmill train" in told


def test_unsure_labels_and_a_refused_model_wait_for_a_person(
    api: httpx.Client, ledger: Ledger, client: Client, submitted, worker, champion: Model
) -> None:
    # Given three labels of which two are unsure, and a training whose model was refused
    job: Job = submitted(3)
    worker.work(job.chunks[0], [Outcome(f"{share}.png", "7", share) for share in (0.3, 0.99, 0.8)])
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        claim = claim_run(connection, run_id, owner="trainer")
        assert claim is not None
        finish_run(connection, claim, model_id=champion.id, verdict="refused: it is worse")

    # Then both wait
    told = text(api, ledger)
    assert "2 unsure labels of mnist" in told
    assert "The latest model of mnist was refused: it is worse" in told

    # And a correction is one less
    client.correct(job.id, 0, "1")
    assert "1 unsure label of mnist" in text(api, ledger)


def test_a_drift_waits_for_a_person_and_the_page_does_not_wait_for_it(
    api: httpx.Client, ledger: Ledger, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job, and a champion whose drift takes long to read
    make_job()
    is_read = threading.Event()
    model_health = health.model_health

    def drifted(*arguments: object) -> health.Health:
        found = model_health(*arguments)  # type: ignore[arg-type]
        assert is_read.wait(30)
        return replace(found, labels=Shift(("0", "1"), (900, 100), (100, 900)))

    monkeypatch.setattr(health, "model_health", drifted)

    # Then the page is shown without it, and with it when it is known
    assert "Running" in (shown := text(api, ledger))
    assert "drifted" not in shown
    is_read.set()
    until(lambda: "The images of mnist have drifted" in text(api, ledger), "the drift is shown")


def test_the_latest_days_count_the_images_of_the_own_project(
    api: httpx.Client, ledger: Ledger, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_VOLUME_SECONDS", 0.0)
    with ledger.transaction() as connection:
        create_project(connection, "birds")

    def add(days_ago: int, project: str = "default", **values: int) -> None:
        of_job = jobs.update().where(jobs.c.id == make_job([9_999], project=project).id)
        with ledger.transaction() as connection:
            connection.execute(of_job.values(created_at=db_now(-86_400.0 * days_ago), **values))

    # Given jobs of more than a week ago and of another project, Then no day is shown
    add(8, succeeded=800)
    add(0, "birds", succeeded=900)
    assert "Last 7 days" not in text(api, ledger)

    # When images of two days are done, Then each day says how many, whether they have labels or errors
    add(0, succeeded=1_000, failed=2)
    add(3, succeeded=4)
    add(3, failed=5)
    days = [datetime.now(UTC).date() - timedelta(days=ago) for ago in range(6, -1, -1)]
    counts = ("0", "0", "0", "9", "0", "0", "1,002")
    rows = " ".join(f"{day:%a} {day.day} {day:%b} {count}" for day, count in zip(days, counts, strict=True))
    assert rows in text(api, ledger)

    # And an index finds the jobs of each day
    plans = [plan for _, plan in plans_of(ledger, lambda connection: count_by_day(connection, days))]
    assert ["created_at" in plan.partition("ix_jobs_")[2] for plan in plans] == [True] * 7
