"""Each slot of the schedule starts one run, however many beats there are, and never late."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from celery.schedules import crontab
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import SettingsError
from jobs.ids import new_id
from jobs.ledger import Ledger, runs
from jobs.ledger.runs import claim_run, latest_runs, request_run
from jobs.messages import RETRAIN_QUEUE
from jobs.queue import make_app
from jobs.schema import RunState, db_now, training_runs
from jobs.settings import Settings
from tests.conftest import Broker
from worker import schedule
from worker.schedule import GRACE, SlotScheduler, beat_schedule, due_slot

WEEKLY = crontab(minute="0", hour="3", day_of_week="0")
SUNDAY = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)

#: Enough for any process of these tests, also on a busy machine.
PROCESS_SECONDS = 120.0


class Clock(datetime):
    """The clock that `worker.schedule` reads."""

    at = SUNDAY

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # noqa: ARG003
        return cls.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(schedule, "datetime", Clock)
    Clock.at = SUNDAY
    return Clock


def make_beat(settings: Settings) -> SlotScheduler:
    """Return beat's scheduler, as `worker.app` sets it up."""
    app = make_app(settings)
    app.labelmill_settings = settings
    app.conf.beat_schedule = beat_schedule(settings)
    return SlotScheduler(app)


@pytest.fixture
def beat(settings: Settings) -> Iterator[SlotScheduler]:
    beat = make_beat(settings)
    yield beat
    beat.app.close()


def fire(beat: SlotScheduler) -> None:
    """Apply the entry, as beat does when its time has come."""
    beat.apply_entry(beat.schedule["retrain"])


def states(ledger: Ledger) -> list[tuple[str, datetime | None]]:
    with ledger.reading() as connection:
        return [(run.state, run.slot) for run in latest_runs(connection, limit=99)]


# ---- which slot ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "found"),
    [
        (timedelta(0), True),
        (timedelta(seconds=0.4), True),
        (timedelta(minutes=9, seconds=59), True),
        (GRACE, False),
        (timedelta(hours=5), False),
        (timedelta(seconds=-1), False),
    ],
)
def test_a_slot_is_due_from_its_minute_on_and_for_no_longer_than_the_grace(
    late: timedelta, found: bool
) -> None:
    assert due_slot(WEEKLY, SUNDAY + late) == (SUNDAY if found else None)


@given(st.timedeltas(timedelta(0), GRACE - timedelta(microseconds=1)), st.sampled_from(["0", "*/10", "*/30"]))
def test_beats_whose_clocks_differ_mean_the_same_slot(apart: timedelta, minutes: str) -> None:
    every = crontab(minute=minutes)
    assert due_slot(every, SUNDAY) == due_slot(every, SUNDAY + apart) == SUNDAY


def test_the_latest_of_several_missed_slots_counts() -> None:
    assert due_slot(crontab(), SUNDAY + timedelta(minutes=3, seconds=5)) == SUNDAY + timedelta(minutes=3)


@pytest.mark.parametrize(
    ("weekdays", "meant"),
    [
        ("7", {0}),
        ("0", {0}),
        ("5-7", {5, 6, 0}),
        ("1-7/2", {1, 3, 5, 0}),
        ("0-7", set(range(7))),
        ("sun-7", set(range(7))),
        ("3,7", {3, 0}),
        ("*/7", {0}),
        ("mon-fri", set(range(1, 6))),
    ],
)
def test_sunday_is_7_as_well(settings: Settings, weekdays: str, meant: set[int]) -> None:
    at = settings.model_copy(update={"retrain_cron": f"0 3 * * {weekdays}"})
    assert beat_schedule(at)["retrain"]["schedule"].day_of_week == meant


@pytest.mark.parametrize("weekdays", ["8", "70", "1-8", "7x"])
def test_a_weekday_that_is_none_is_refused(settings: Settings, weekdays: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid cron line"):
        beat_schedule(settings.model_copy(update={"retrain_cron": f"0 3 * * {weekdays}"}))


def test_another_time_zone_is_the_same_moment() -> None:
    there = SUNDAY.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert due_slot(WEEKLY, there) == SUNDAY


# ---- opening a slot -----------------------------------------------------------------------------------


def test_beat_opens_the_slot_and_sends_the_runs_message(
    beat: SlotScheduler, clock: type[Clock], ledger: Ledger, broker: Broker
) -> None:
    # given a beat, just after the slot's time
    clock.at = SUNDAY + timedelta(seconds=0.3)

    # when the entry fires
    fire(beat)

    # then the slot's run is pending, with the recipe of the settings, and the message names the run
    with ledger.reading() as connection:
        [run] = latest_runs(connection, limit=9)
    assert (run.state, run.slot) == (RunState.PENDING, SUNDAY)
    assert (run.recipe["architecture"], run.recipe["profile"], run.recipe["force"]) == ("mlp", "quick", False)
    [message] = broker.messages(RETRAIN_QUEUE)
    assert run.id in json.loads(message)["headers"]["argsrepr"]


def test_a_slot_that_was_missed_does_not_fire_late(
    beat: SlotScheduler, clock: type[Clock], ledger: Ledger, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    # given a machine that was asleep during the slot
    clock.at = SUNDAY + timedelta(hours=5)

    # when beat wakes and fires, then it only logs that the slot was missed
    fire(beat)
    assert states(ledger) == []
    assert broker.waiting(RETRAIN_QUEUE) == 0
    assert "missed" in caplog.text


def test_a_trainer_that_died_costs_no_slot(
    beat: SlotScheduler, clock: type[Clock], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run whose trainer died, and no reconciler
    monkeypatch.setattr(runs, "RUN_GRACE_SECONDS", 0.1)
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        assert claim_run(connection, run_id, owner="host/1") is not None
        connection.execute(training_runs.update().values(lease_until=db_now(-1)))

    # when the slot's time comes, then the slot has a pending run
    clock.at = SUNDAY + timedelta(seconds=0.3)
    fire(beat)
    assert states(ledger) == [(RunState.PENDING, SUNDAY), (RunState.INTERRUPTED, None)]


def test_each_slot_has_another_seed(beat: SlotScheduler, clock: type[Clock], ledger: Ledger) -> None:
    fire(beat)
    with ledger.transaction() as connection:
        connection.exec_driver_sql("UPDATE training_runs SET active = NULL, state = 'failed'")
    clock.at += timedelta(days=7)
    fire(beat)
    with ledger.reading() as connection:
        assert len({run.recipe["seed"] for run in latest_runs(connection, limit=9)}) == 2


def test_a_second_beat_comes_too_late(
    settings: Settings, beat: SlotScheduler, clock: type[Clock], ledger: Ledger, broker: Broker
) -> None:
    # given two beats, the second of which fires a little later
    other = make_beat(settings)
    clock.at = SUNDAY + timedelta(seconds=1)
    fire(beat)
    clock.at = SUNDAY + timedelta(seconds=4)

    # when both have fired, then there is one run, and one message
    fire(other)
    other.app.close()
    assert states(ledger) == [(RunState.PENDING, SUNDAY)]
    assert broker.waiting(RETRAIN_QUEUE) == 1


def test_a_ledger_that_is_unavailable_for_a_moment_costs_no_slot(
    settings: Settings, clock: type[Clock], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a beat whose ledger cannot be reached at the slot's time
    here = settings.ledger_url
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    beat = make_beat(settings.model_copy(update={"ledger_url": nowhere}))
    fire(beat)
    assert states(ledger) == []

    # when the ledger is back, then the next tick opens the slot
    monkeypatch.setattr(schedule, "RETRY_SECONDS", 0.0)
    beat.app.labelmill_settings = settings.model_copy(update={"ledger_url": here})
    beat._retry_at = 0.0
    clock.at = SUNDAY + timedelta(minutes=4)
    assert beat.tick() >= 0
    assert states(ledger) == [(RunState.PENDING, SUNDAY)]

    # and opens it only once
    beat.tick()
    assert len(states(ledger)) == 1
    beat.app.close()


def test_a_ledger_that_is_unavailable_for_too_long_costs_the_slot(
    settings: Settings, clock: type[Clock], ledger: Ledger
) -> None:
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    beat = make_beat(settings.model_copy(update={"ledger_url": nowhere}))
    fire(beat)
    beat.app.labelmill_settings = settings
    beat._retry_at = 0.0
    clock.at = SUNDAY + GRACE
    beat.tick()
    assert states(ledger) == []
    clock.at = SUNDAY  # not even if the clock is set back, because the slot was given up
    beat.tick()
    assert states(ledger) == []
    beat.app.close()


def test_beat_needs_no_broker_to_open_a_slot(settings: Settings, clock: type[Clock], ledger: Ledger) -> None:  # noqa: ARG001
    # given no broker
    away = f"redis+socket://{settings.home}/nobody.sock"
    beat = make_beat(settings.model_copy(update={"broker_url": away}))

    # when the slot's time comes, then its run is pending; a reconciler will send the message
    beat.app.conf.broker_connection_max_retries = 1  # otherwise beat would wait for the broker forever
    beat.schedule["retrain"].last_run_at = SUNDAY - timedelta(days=8)
    beat.tick()
    assert states(ledger) == [(RunState.PENDING, SUNDAY)]
    beat.app.close()


# ---- real processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_plain_celery_beat_is_ours_and_writes_no_file(settings: Settings, tmp_path: Any) -> None:
    # given `celery beat` in an empty folder
    environment = settings.environment() | {"PATH": "/usr/bin:/bin", "LABELMILL_RETRAIN_CRON": "* * * * *"}
    command = [sys.executable, "-m", "celery", "-A", "worker.app", "beat", "--pidfile=", "--loglevel", "info"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    ) as process:
        # when it has started and is terminated; the timer ends one that prints nothing
        patience = threading.Timer(PROCESS_SECONDS, process.kill)
        patience.start()
        assert process.stdout is not None
        lines = iter(process.stdout)
        told = next((line for line in lines if "beat: Starting" in line), "")
        process.terminate()
        told += "".join(lines)
        patience.cancel()

    # then it uses our scheduler, and leaves no file
    assert "worker.schedule.SlotScheduler" in told
    assert not list(tmp_path.glob("celerybeat*"))
