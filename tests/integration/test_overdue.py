"""A scheduled training for which no run was requested is overdue, until one is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from celery.schedules import crontab

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.runs import request_run
from jobs.ledger.learning.schedules import set_schedule
from jobs.schema import db_now, schedules
from jobs.settings import Settings
from labelmill.operations.metrics import LabelmillCollector
from tests.scraping import Scrape, collected
from worker.schedule import last_slot

SUNDAY = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        (SUNDAY, SUNDAY, SUNDAY),
        (SUNDAY - timedelta(days=30), SUNDAY + timedelta(days=6), SUNDAY),
        (SUNDAY - timedelta(days=30), SUNDAY - timedelta(seconds=1), SUNDAY - timedelta(days=7)),
        (SUNDAY + timedelta(seconds=1), SUNDAY + timedelta(days=6), None),
        (SUNDAY + timedelta(days=1), SUNDAY, None),
    ],
)
def test_the_last_slot_of_a_schedule(since: datetime, until: datetime, found: datetime | None) -> None:
    weekly = crontab(minute="0", hour="3", day_of_week="0")
    assert last_slot(weekly, since=since, until=until) == found


def test_a_slot_is_overdue_until_a_run_is_requested(settings: Settings, ledger: Ledger) -> None:
    # Given a schedule for each hour that was set two hours ago, and no beat
    with ledger.transaction() as connection:
        set_schedule(connection, "birds", cron="0 * * * *", after_corrections=None, request={})
        connection.execute(schedules.update().values(changed_at=db_now(-7200)))

    # Then the slot of this hour is overdue, and not that of a dataset whose schedule has no time yet
    assert 60 <= _overdue(settings)["birds"] <= 3660
    assert "mnist" not in _overdue(settings)

    # And when a person requests a run, none is overdue
    with ledger.transaction() as connection:
        request_run(connection, new_id(), recipe={}, dataset="birds")
    assert "birds" not in _overdue(settings)


def _overdue(settings: Settings) -> dict[str, float]:
    now: Scrape = collected(LabelmillCollector(settings))
    return now.by("schedule_overdue_seconds")
