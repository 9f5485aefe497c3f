"""The page on health: what each role and project sees of it, and what is read once for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key, revoke_key
from jobs.ledger.api.projects import create_project
from jobs.ledger.api.webhooks import add_endpoint
from jobs.ledger.learning.models import move_champion
from jobs.ledger.webhook_outbox import report_test
from jobs.ledger.workers import WorkerRow, report_worker
from jobs.models.drift import Shift
from jobs.models.model import Model
from jobs.network.webhooks import Event
from jobs.options import DEFAULT_PROJECT
from jobs.schema import db_now, workers
from jobs.settings import Settings
from labelmill.operations import doctor
from labelmill.operations.doctor.findings import ok, problem
from labelmill.web import health
from tests.conftest import JobMaker, Worker
from tests.receiver import receiving
from tests.serving import served_locally
from tests.unit.test_reporting import Page
from worker.webhook_sender import deliver_next

HOSTILE = "<img src=x onerror='alert(1)'>"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"private_hosts": ("127.0.0.1",)})


@pytest.fixture
def url(settings: Settings, ledger: Ledger) -> Iterator[str]:  # noqa: ARG001
    with served_locally(settings) as (_, url):
        yield url


@contextmanager
def signed_in(
    url: str, ledger: Ledger, role: Role = Role.ADMIN, project: str = DEFAULT_PROJECT
) -> Iterator[httpx.Client]:
    """Yield a client that asks for pages, with a new key of this role and project."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, f"key of {project}", role, project=project)
    headers = {"Accept": "text/html"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, follow_redirects=True) as client:
        assert client.post("/sign-in", data={"key": key}).status_code == 200
        yield client


def read(browser: httpx.Client, path: str = "/health") -> Page:
    """Return a page, which must be whole and safe under the server's policy."""
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    page = Page(answer.text)
    assert not any(name == "style" or name.startswith("on") for _, all_ in page.elements for name in all_)
    return page


def test_workers_and_the_backlog_are_shown(
    url: str, ledger: Ledger, make_job: JobMaker, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_WORK_SECONDS", 0.0)
    # Given nothing to do, and nobody to do it: the page says how to start a worker
    with signed_in(url, ledger, Role.SUBMIT) as browser:
        page = read(browser)
        assert "No worker runs" in page.text
        assert "labelmill up" in page.text

        # When a worker claims one of two chunks, a second has a problem, and a third is gone
        job = make_job([3, 4])
        worker.claim(job.chunks[0])
        rows = [
            WorkerRow("host/1", "host", "labelmill.classify", [worker.name], "1"),
            WorkerRow("host/2", "host", HOSTILE, [], "1", problem="its clock is wrong"),
            WorkerRow("host/3", "host", "labelmill.retrain", ["host/4"], "1"),
        ]
        with ledger.transaction() as connection:
            for row in rows:
                report_worker(connection, row, up_seconds=60)
            connection.execute(workers.update().where(workers.c.name == "host/3").values(seen_at=db_now(-60)))

        # Then each is shown with what it is at, and the rest waits
        text = read(browser).text
        assert "4 images waiting, in 1 chunks" in text
        assert "3 images in work" in text
        assert "host/1 labelmill.classify 1 1 chunk" in text
        assert f"host/2 {HOSTILE} 0 its clock is wrong" in text
        assert "host/3 labelmill.retrain 1 gone" in text


def test_webhooks_are_shown_with_their_last_answers(url: str, ledger: Ledger, settings: Settings) -> None:
    # Given a receiver that accepts messages, one that gets none, and one of another project
    with receiving() as receiver:
        with ledger.transaction() as connection:
            create_project(connection, "birds")
            add_endpoint(connection, "https://example.org/birds", project="birds")
            add_endpoint(connection, "https://example.org/quiet", [Event.RUN_FINISHED])
            endpoint, secret = add_endpoint(connection, receiver.url)
            report_test(connection, endpoint.id)
        assert deliver_next(ledger, settings)

        # Then an admin sees those of the project with their latest answers, and no secret
        with signed_in(url, ledger) as browser:
            page = read(browser)
            assert "test just now: answered 204" in page.text
            assert "https://example.org/quiet run.finished none yet" in page.text
            assert "example.org/birds" not in page.text
            assert secret not in browser.get("/health").text

    # And a reviewer sees none
    with signed_in(url, ledger, Role.REVIEW) as browser:
        assert "example.org" not in read(browser).text


def test_keys_are_shown_to_admins_of_their_project_alone(
    url: str, ledger: Ledger, make_job: JobMaker
) -> None:
    with ledger.transaction() as connection:
        create_project(connection, "birds")
        _, secret = create_key(connection, HOSTILE, Role.SUBMIT)
        revoked, _ = create_key(connection, "old", Role.REVIEW)
        revoke_key(connection, revoked.id)
        create_key(connection, "short", Role.SUBMIT, days=0)
    for project, sizes in (("default", [3, 4]), ("birds", [5])):
        make_job(sizes, project=project)

    # An admin sees each key of the project with its state, and no secret
    with signed_in(url, ledger) as browser:
        page = read(browser, "/health/keys")
        assert HOSTILE in page.text
        assert f"old {revoked.id} review revoked" in page.text
        assert "submit expired" in page.text
        assert "1 job with 7 images, 7 of them waiting" in page.text
        assert secret not in browser.get("/health/keys").text

    # An admin of another project sees only its own, and not what the doctor says about all projects
    with signed_in(url, ledger, project="birds") as browser:
        text = read(browser, "/health/keys").text
        assert "key of birds" in text
        assert "1 job with 5 images" in text
        assert HOSTILE not in text
        assert DEFAULT_PROJECT not in text
        assert "/health/doctor" not in browser.get("/health").text
        assert browser.get("/health/doctor").status_code == 403

    # And others see neither
    with signed_in(url, ledger, Role.REVIEW) as browser:
        assert browser.get("/health/keys").status_code == 403
        assert browser.get("/health/doctor").status_code == 403
        page = read(browser)
        assert not {each.get("href") for each in page.all("a")} & {"/health/keys", "/health/doctor"}


def test_the_doctor_runs_once_for_all_and_its_advice_stays_text(
    url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a doctor that finds one problem
    runs = []
    found = {"store": [ok("the store answers")], "broker": [problem(HOSTILE, fix="labelmill up; <b>rm</b>")]}
    monkeypatch.setattr(doctor, "examine", lambda _settings: runs.append(1) or found)

    # When two people look at its findings
    with signed_in(url, ledger) as first, signed_in(url, ledger) as second:
        pages = [read(first, "/health/doctor"), read(second, "/health/doctor")]

    # Then both see the problem with its advice, and it was asked once
    for page in pages:
        assert f"problem broker {HOSTILE}" in page.text
        assert "To do: labelmill up; <b>rm</b>" in page.text
        assert "1 of 2 checks found nothing wrong" in page.text
    assert runs == [1]


def test_the_real_doctor_answers(url: str, ledger: Ledger) -> None:
    with signed_in(url, ledger) as browser:
        text = read(browser, "/health/doctor").text
    assert "there is no model, so nothing can be submitted" in text
    assert "labelmill train" in text


def test_drift_names_the_images_that_moved_most(
    url: str, ledger: Ledger, champion: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a champion that was never evaluated: the page says why drift is unknown
    with ledger.transaction() as connection:
        move_champion(connection, champion.id, previous_id=None, how="promote")
    with signed_in(url, ledger, Role.SUBMIT) as browser:
        assert "never evaluated" in read(browser, "/health/drift").text
    monkeypatch.setattr(health, "_DRIFT_SECONDS", 0.0)

    # When half of the recent images are of one class, which had a tenth of them
    with ledger.reading() as connection:
        known = health.model_health(connection, champion.id)
    groups = (HOSTILE, *"123456789")
    shift = Shift(groups, (100,) * 10, (900, *(100,) * 9))
    fields = {name: getattr(known, name) for name in known.__dataclass_fields__} | {
        "labels": shift,
        "images": 1_800,
        "jobs": 1,
    }
    monkeypatch.setattr(health, "model_health", lambda *_: health.Health(**fields))

    # Then the page names that class first, with its shares
    with signed_in(url, ledger, Role.SUBMIT) as browser:
        text = read(browser, "/health/drift").text
    assert "drifted The mix of labels has drifted" in text
    assert f"recent label {HOSTILE} 10.0 % 50.0 %" in text.replace("\u00a0", " ")
