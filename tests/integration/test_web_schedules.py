"""Schedules over HTTP: set and read with the API, and shown with the runs that they started."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from jobs.errors import UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.learning.runs import cancel_run, claim_run, finish_run, request_run
from jobs.models.model import Model
from jobs.schema import audit
from labelmill.client import Client
from tests.labelled import write_classes
from worker.schedule import parse_cron

SUNDAYS = "0 3 * * 7"


@pytest.fixture
def pets(client: Client, tmp_path: Path) -> str:
    return client.add_dataset("pets", write_classes(tmp_path / "pets")).version.dataset


def page(api: httpx.Client, ledger: Ledger, role: Role) -> str:
    """Return the page as somebody with this role sees it."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "person", role)
    with httpx.Client(base_url=api.base_url.join("/"), headers={"Accept": "text/html"}) as browser:
        browser.post("/sign-in", data={"key": key})
        answer = browser.get("/runs")
    assert answer.status_code == 200
    return answer.text.partition("<main")[2]


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_a_schedule_is_set_read_and_switched_off(api: httpx.Client, ledger: Ledger, pets: str) -> None:
    # When a schedule is set, then the answer has its next time, and the list has it
    wanted: dict[str, Any] = {"cron": SUNDAYS, "after_corrections": 500, "training": {"architecture": "cnn"}}
    answer = api.put(f"/schedules/{pets}", json=wanted)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["dataset"], found["cron"], found["after_corrections"]) == (pets, SUNDAYS, 500)
    following = datetime.fromtimestamp(found["next_at"], UTC)
    assert (following.isoweekday(), following.hour, following.minute) == (7, 3, 0)
    assert timedelta(0) < following - datetime.now(UTC) <= timedelta(days=7)
    assert found["new_corrections"] == 0
    assert api.get("/schedules").json()["data"] == [found]

    # When it is replaced, then a time that is left out is off, and training stays as it was
    found = api.put(f"/schedules/{pets}", json={"after_corrections": 20}).json()
    assert (found["cron"], found["next_at"], found["after_corrections"]) == (None, None, 20)
    assert found["training"]["architecture"] == "cnn"
    off = api.put(f"/schedules/{pets}", json={}).json()
    assert (off["cron"], off["after_corrections"]) == (None, None)

    # And each change is in the audit
    with ledger.reading() as connection:
        changes = connection.scalars(sa.select(audit.c.object).where(audit.c.action == "set schedule")).all()
    assert changes == [pets] * 3


@pytest.mark.parametrize("line", ["0 3 * *", "0 25 * * *", "every sunday at 3 o'clock"])
def test_a_malformed_cron_line_gets_the_message_of_the_command(
    api: httpx.Client, pets: str, line: str
) -> None:
    with pytest.raises(UserError) as told:
        parse_cron(line)
    answer = api.put(f"/schedules/{pets}", json={"cron": line})
    assert (answer.status_code, answer.json()["detail"]) == (409, str(told.value))
    assert api.get("/schedules").json()["data"] == []


def test_what_does_not_fit_is_refused(api: httpx.Client, pets: str) -> None:
    assert api.put("/schedules/birds", json={"cron": SUNDAYS}).status_code == 404
    for body in ({"after_corrections": -1}, {"cron": 7}, {"training": {"size": "64"}}, {"dataset": pets}):
        assert api.put(f"/schedules/{pets}", json=body).status_code == 422, body
    misfit = {"cron": SUNDAYS, "training": {"architecture": "mlp", "start": "champion"}}
    assert api.put(f"/schedules/{pets}", json=misfit).status_code == 409
    assert api.get("/schedules").json()["data"] == []


@pytest.mark.parametrize("role", [Role.SUBMIT, Role.REVIEW])
def test_only_admins_change_schedules(api: httpx.Client, ledger: Ledger, pets: str, role: Role) -> None:
    with ledger.transaction() as connection:
        _, key = create_key(connection, "person", role)
    theirs = {"Authorization": f"Bearer {key}"}
    assert api.put(f"/schedules/{pets}", json={"cron": SUNDAYS}, headers=theirs).status_code == 403
    assert api.get("/schedules", headers=theirs).json()["data"] == []
    assert "<form" not in page(api, ledger, role)


def test_a_schedule_is_shown_with_the_runs_that_it_started(
    api: httpx.Client, ledger: Ledger, pets: str, champion: Model
) -> None:
    # Given a schedule, and runs at its times, for corrections, and of a person; the latest was refused
    api.put(f"/schedules/{pets}", json={"cron": SUNDAYS, "after_corrections": 500})
    now = datetime.now(UTC).replace(microsecond=0)
    causes: dict[str, dict[str, Any]] = {
        "week 0": {"slot": now - timedelta(weeks=3)},
        "week 1": {"slot": now - timedelta(weeks=2)},
        "week 2": {"slot": now - timedelta(weeks=1)},
        "person": {},
        "corrections": {"corrections_seen": now},
        "week 3": {"slot": now},
        "extra": {"slot": now + timedelta(minutes=1)},
    }
    runs = dict(zip(causes, sorted(new_id() for _ in causes), strict=True))
    for name, run_id in runs.items():
        with ledger.transaction() as connection:
            request_run(connection, run_id, recipe={}, dataset=pets, **causes[name])
            if name == "extra":
                claim = claim_run(connection, run_id, owner="trainer")
                assert claim is not None
                finish_run(connection, claim, model_id=champion.id, verdict="refused: it is worse")
            else:
                cancel_run(connection, run_id)

    # Then the page has its next time, and the latest runs that it started, with their verdicts
    shown = page(api, ledger, Role.ADMIN).partition('id="schedules"')[2]
    latest = ("extra", "week 3", "corrections", "week 2", "week 1")
    assert re.findall(r'href="/runs/(\w+)"', shown) == [runs[name] for name in latest]
    [following] = api.get("/schedules").json()["data"]
    exact = f'title="{datetime.fromtimestamp(following["next_at"], UTC):%Y-%m-%d %H:%M:%S} UTC">in '
    assert exact in shown
    told = text(shown)
    assert f"pets at {SUNDAYS} (UTC), next in " in told
    assert "also after 500 corrections, of which 0 are new" in told
    assert "just now : done refused: it is worse" in told
    assert "just now , after corrections: cancelled" in told

    # And a form with what is set
    assert f'name="cron" value="{SUNDAYS}"' in shown
    assert re.search(r'name="after_corrections" min="0" value="500"', shown)


def test_a_dataset_without_a_schedule_can_get_one(api: httpx.Client, ledger: Ledger, pets: str) -> None:
    shown = page(api, ledger, Role.ADMIN)
    assert "pets is trained only when somebody starts it" in text(shown)
    assert f'data-send="/v1/schedules/{pets}" data-method="PUT"' in shown
    assert "Switch off" not in shown
