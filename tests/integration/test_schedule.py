"""Each dataset and slot gets one run, however many beats there are, and never late."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery.schedules import crontab
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.database import SQLITE_BUSY_SECONDS
from jobs.ledger.learning import runs
from jobs.ledger.learning.corrections import NewCorrection, remove_correction, save_corrections
from jobs.ledger.learning.runs import claim_run, latest_runs, request_run
from jobs.ledger.learning.schedules import set_schedule
from jobs.ledger.workers import BEAT
from jobs.messages import RETRAIN_QUEUE
from jobs.models.dataset import MNIST
from jobs.queue import make_app
from jobs.schema import RunState, db_now, schedules, training_runs
from jobs.settings import Settings
from labelmill.commands.schedule import app as schedule_command
from labelmill.datasets.mnist import CRON, REQUEST
from labelmill.operations.metrics import LabelmillCollector
from labelmill.operations.readiness import Part, liveness
from tests.conftest import Broker
from tests.console import killed_at_the_end, until
from tests.scraping import Scrape, collected
from worker import schedule
from worker.schedule import GRACE, SlotScheduler, due_slot, last_slot, next_slot, parse_cron

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
def clock(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    """Return beat's clock, a Sunday at 3, when `mnist` is trained, and the seconds after."""
    schedule_dataset(ledger, MNIST, cron=CRON, request=REQUEST)
    monkeypatch.setattr(schedule, "datetime", Clock)
    Clock.at = SUNDAY
    return Clock


def make_beat(settings: Settings) -> SlotScheduler:
    """Return beat's scheduler, as `worker.app` sets it up."""
    app = make_app(settings)
    app.labelmill_settings = settings
    return SlotScheduler(app)


@pytest.fixture
def beat(settings: Settings, clock: type[Clock]) -> Iterator[SlotScheduler]:  # noqa: ARG001 - it started then
    beat = make_beat(settings)
    yield beat
    beat.app.close()


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
def test_sunday_is_7_as_well(weekdays: str, meant: set[int]) -> None:
    assert parse_cron(f"0 3 * * {weekdays}").day_of_week == meant


@pytest.mark.parametrize("weekdays", ["8", "70", "1-8", "7x"])
def test_a_weekday_that_is_none_is_refused(weekdays: str) -> None:
    with pytest.raises(UserError, match="is not a valid cron line"):
        parse_cron(f"0 3 * * {weekdays}")


@pytest.mark.parametrize(
    ("line", "after", "found"),
    [
        ("0 3 * * 0", SUNDAY, SUNDAY + timedelta(days=7)),
        ("0 3 * * 0", SUNDAY - timedelta(seconds=1), SUNDAY),
        ("*/20 3,4 * * *", SUNDAY + timedelta(minutes=45), SUNDAY + timedelta(hours=1)),
        ("0 0 29 2 *", SUNDAY, datetime(2028, 2, 29, tzinfo=UTC)),
    ],
)
def test_the_next_slot_is_found(line: str, after: datetime, found: datetime) -> None:
    assert next_slot(parse_cron(line), after) == found


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
def test_the_last_slot_is_found(since: datetime, until: datetime, found: datetime | None) -> None:
    assert last_slot(WEEKLY, since=since, until=until) == found


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
    beat.tick()

    # then the slot's run is pending, with the recipe of the schedule, and the message names the run
    with ledger.reading() as connection:
        [run] = latest_runs(connection, limit=9)
    assert (run.state, run.slot) == (RunState.PENDING, SUNDAY)
    assert (run.recipe["architecture"], run.recipe["profile"], run.recipe["force"]) == ("mlp", "quick", False)
    [message] = broker.messages(RETRAIN_QUEUE)
    assert run.id in json.loads(message)["headers"]["argsrepr"]


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
    beat.tick()
    assert states(ledger) == [(RunState.PENDING, SUNDAY), (RunState.INTERRUPTED, None)]


def test_each_slot_has_another_seed(beat: SlotScheduler, clock: type[Clock], ledger: Ledger) -> None:
    beat.tick()
    with ledger.transaction() as connection:
        connection.exec_driver_sql("UPDATE training_runs SET active = NULL, state = 'failed'")
    clock.at += timedelta(days=7)
    beat.tick()
    with ledger.reading() as connection:
        assert len({run.recipe["seed"] for run in latest_runs(connection, limit=9)}) == 2


def test_a_ledger_that_is_unavailable_for_a_moment_costs_no_slot(
    settings: Settings, clock: type[Clock], ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # given a beat whose ledger cannot be reached at the slot's time
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    beat = make_beat(settings.model_copy(update={"ledger_url": nowhere}))
    beat.tick()
    beat.tick()
    assert states(ledger) == []
    # which is no reason to restart it
    assert liveness(settings, Part.BEAT).ready

    # when the ledger is back minutes later, then the slot has its run, and only one
    beat.app.labelmill_settings = settings
    clock.at = SUNDAY + timedelta(minutes=4)
    assert beat.tick() >= 0
    beat.tick()
    assert states(ledger) == [(RunState.PENDING, SUNDAY)]

    # and the log has one line for the outage, however often beat looked
    assert caplog.text.count("no run is requested for now") == 1
    beat.app.close()


def test_beat_needs_no_broker_to_open_a_slot(settings: Settings, clock: type[Clock], ledger: Ledger) -> None:  # noqa: ARG001
    # given no broker
    away = f"redis+socket://{settings.home}/nobody.sock"
    beat = make_beat(settings.model_copy(update={"broker_url": away}))

    # when the slot's time comes, then its run is pending; a reconciler will send the message
    beat.tick()
    assert states(ledger) == [(RunState.PENDING, SUNDAY)]
    beat.app.close()


# ---- schedules in the ledger ----------------------------------------------------------------------------


def schedule_dataset(
    ledger: Ledger,
    dataset: str,
    *,
    cron: str | None = None,
    after_corrections: int | None = None,
    request: dict[str, Any] | None = None,
    changed_at: datetime = SUNDAY - timedelta(days=1),
    always: bool = False,
) -> None:
    """Store a schedule that was changed long before the slot, or then."""
    with ledger.transaction() as connection:
        set_schedule(
            connection,
            dataset,
            cron=cron,
            after_corrections=after_corrections,
            request=request or {"architecture": "cnn"},
            always=always,
        )
        changed = schedules.update().where(schedules.c.dataset == dataset)
        connection.execute(changed.values(changed_at=changed_at))


def runs_by_dataset(ledger: Ledger) -> list[tuple[str, str]]:
    with ledger.reading() as connection:
        return sorted((run.dataset, str(run.state)) for run in latest_runs(connection, limit=99))


def test_beat_follows_a_change_of_a_schedule(beat: SlotScheduler, clock: type[Clock], ledger: Ledger) -> None:
    # given a running beat, and a schedule that is stored meanwhile
    clock.at = SUNDAY - timedelta(minutes=30)
    beat.tick()
    schedule_dataset(ledger, "birds", cron="45 2 * * *")
    clock.at = SUNDAY - timedelta(minutes=15)

    # when its slot comes, then its dataset is trained as it says, and mnist at its own time
    beat.tick()
    with ledger.reading() as connection:
        [run] = latest_runs(connection, limit=9)
    assert (run.dataset, run.recipe["architecture"]) == ("birds", "cnn")
    clock.at = SUNDAY
    beat.tick()
    assert runs_by_dataset(ledger) == [("birds", "pending"), ("mnist", "pending")]


def test_a_schedule_that_cannot_be_followed_does_not_stop_the_others(
    beat: SlotScheduler, clock: type[Clock], ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # given a dataset that comes first, and whose training is impossible
    clock.at = SUNDAY
    schedule_dataset(ledger, "birds", cron="0 3 * * *", request={"profile": "short"})

    # when both are due, then mnist has its run, and the log names the other one, once
    beat.tick()
    beat.tick()
    assert runs_by_dataset(ledger) == [("mnist", "pending")]
    assert caplog.text.count("birds: profile: ") == 1


def test_a_schedule_can_be_off(beat: SlotScheduler, clock: type[Clock], ledger: Ledger) -> None:
    schedule_dataset(ledger, MNIST)
    clock.at = SUNDAY
    beat.tick()
    assert states(ledger) == []


def test_a_new_schedule_does_not_open_a_slot_that_is_past(
    beat: SlotScheduler, clock: type[Clock], ledger: Ledger
) -> None:
    # given a schedule for 02:55 that is stored at 03:00
    schedule_dataset(ledger, "birds", cron="55 2 * * *", changed_at=SUNDAY)
    clock.at = SUNDAY
    beat.tick()
    assert runs_by_dataset(ledger) == [("mnist", "pending")]


@pytest.mark.usefixtures("mnist")
def test_a_month_of_nights_without_news_is_one_training(
    beat: SlotScheduler, clock: type[Clock], ledger: Ledger, make_model: Any
) -> None:
    # given a dataset that is trained each night, with three corrections
    schedule_dataset(ledger, MNIST, cron="0 3 * * *", request=REQUEST)
    model = make_model()
    correct_images(ledger, model.id, range(3))

    def nights(number: int) -> list[str]:
        """Pass some nights in which each run finishes, and return the states of all runs, latest first."""
        for _ in range(number):
            beat.tick()
            with ledger.transaction() as connection:
                pending = training_runs.update().where(training_runs.c.state == RunState.PENDING)
                data = {"corrections": 2, "live_images": 1, "left_out": 0}
                ended = {"state": RunState.DONE, "active": None, "started_at": db_now()}
                connection.execute(pending.values(**ended, dataset_version=1, data=data))
            clock.at += timedelta(days=1)
        return [str(state) for state, _ in states(ledger)]

    # when a month passes, then there is one training, and one row for all other nights, which doctor accepts
    assert nights(30) == ["skipped", "done"]
    [skipped, _] = states(ledger)
    assert skipped[1] == clock.at - timedelta(days=1)

    # when a correction is new, or one is removed, then the next night trains again, once
    correct_images(ledger, model.id, range(3, 4))
    assert nights(2) == ["skipped", "done", "skipped", "done"]
    with ledger.transaction() as connection:
        for index in (0, 1):
            assert remove_correction(connection, "06h0w99y8275b8s6", index) is not None
    assert nights(1)[0] == "done"

    # and with --always, each night does
    schedule_dataset(ledger, MNIST, cron="0 3 * * *", request=REQUEST, always=True)
    assert nights(3)[:3] == ["done"] * 3


def test_enough_new_corrections_start_one_run(
    beat: SlotScheduler, clock: type[Clock], ledger: Ledger, make_model: Any
) -> None:
    # given a dataset that is trained after three corrections, and two corrections
    clock.at = SUNDAY + timedelta(hours=1)
    model = make_model()
    schedule_dataset(ledger, "mnist", after_corrections=3)
    correct_images(ledger, model.id, range(2))
    beat.tick()
    assert states(ledger) == []

    # when the third comes, then a run is requested, and only one
    correct_images(ledger, model.id, range(2, 3))
    beat.tick()
    beat.tick()
    assert states(ledger) == [(RunState.PENDING, None)]

    # and the next one once three more have come after it
    with ledger.transaction() as connection:
        connection.execute(training_runs.update().values(active=None, state=RunState.DONE))
    correct_images(ledger, model.id, range(3, 5))
    beat.tick()
    assert len(states(ledger)) == 1
    correct_images(ledger, model.id, range(5, 6))
    beat.tick()
    assert len(states(ledger)) == 2

    # and the next one once three have got another label
    with ledger.transaction() as connection:
        connection.execute(training_runs.update().values(active=None, state=RunState.DONE))
    correct_images(ledger, model.id, range(3))
    beat.tick()
    assert len(states(ledger)) == 3


def correct_images(ledger: Ledger, model_id: str, indices: range) -> None:
    with ledger.transaction() as connection:
        save_corrections(
            connection,
            [
                NewCorrection(
                    "06h0w99y8275b8s6", index, f"{index}.png", "7", "1", 0.5, model_id, f"{index:064}"
                )
                for index in indices
            ],
        )


def test_two_beats_request_one_run_per_dataset_and_slot(
    settings: Settings, clock: type[Clock], ledger: Ledger, broker: Broker
) -> None:
    # given two beats and three datasets, one of which is trained after a correction too
    for dataset in ("birds", "boats", "mnist"):
        schedule_dataset(ledger, dataset, cron="0 3 * * *", always=True)
    beats = [make_beat(settings), make_beat(settings)]
    for day in range(3):
        clock.at = SUNDAY + timedelta(days=day, seconds=1)

        # when both look at the same moment, several times
        with ThreadPoolExecutor(len(beats)) as pool:
            for _ in range(3):
                list(pool.map(lambda beat: beat.tick(), beats))

        # then each dataset has one run and one message more
        assert broker.waiting(RETRAIN_QUEUE) == 3 * (day + 1)
        assert [dataset for dataset, _ in runs_by_dataset(ledger)] == sorted(
            ("birds", "boats", "mnist") * (day + 1)
        )
        with ledger.transaction() as connection:
            connection.execute(training_runs.update().values(active=None, state=RunState.DONE))
    for beat in beats:
        beat.app.close()


def test_a_slot_is_overdue_until_a_run_is_requested(settings: Settings, ledger: Ledger) -> None:
    def overdue() -> dict[str, float]:
        now: Scrape = collected(LabelmillCollector(settings))
        return now.by("schedule_overdue_seconds")

    # Given a schedule for each hour that was set two hours ago, and no beat
    schedule_dataset(ledger, "birds", cron="0 * * * *")
    with ledger.transaction() as connection:
        connection.execute(schedules.update().values(changed_at=db_now(-7200)))

    # Then the slot of this hour is overdue, and not that of a dataset whose schedule has no time yet
    assert 60 <= overdue()["birds"] <= 3660
    assert "mnist" not in overdue()

    # And when a person requests a run, none is overdue
    with ledger.transaction() as connection:
        request_run(connection, new_id(), recipe={}, dataset="birds")
    assert "birds" not in overdue()


# ---- at the console -----------------------------------------------------------------------------------


@pytest.fixture
def cli(run_command, birds):  # noqa: ARG001 -- there has to be a dataset
    return lambda *arguments: run_command(schedule_command, *arguments)


def listed(cli, *arguments):
    """Return what `labelmill schedule ... --json` prints, by dataset."""
    found = json.loads(cli(*arguments, "--json").stdout)
    return {each["dataset"]: each for each in found}


def test_a_schedule_changes_in_one_point(cli):
    # Given a schedule, when its training changes, then the time stays
    cli("birds", "--cron", "0 3 * * 0", "--architecture", "mlp", "--max-minutes", "3")
    cli("birds", "--architecture", "cnn")
    after = listed(cli, "birds")["birds"]
    assert (after["cron"], after["request"]) == ("0 3 * * 0", {"architecture": "cnn"})

    # And it can be switched off
    cli("birds", "--off")
    assert listed(cli)["birds"]["next"] is None

    # And it trains if something is new, unless told otherwise
    assert listed(cli)["birds"]["always"] is False
    cli("birds", "--always")
    cli("birds", "--cron", "0 4 * * 0")
    assert listed(cli)["birds"]["always"] is True


def test_a_dataset_gets_a_schedule(cli):
    cli("birds", "--after-corrections", "500")
    cli("birds", "--cron", "15 4 * * *")
    birds = listed(cli)["birds"]
    assert (birds["cron"], birds["after_corrections"], birds["new_corrections"]) == ("15 4 * * *", 500, 0)
    assert birds["next"].endswith("04:15:00+00:00")
    assert "15 4 * * *" in cli().stdout


def test_a_schedule_whose_training_is_no_longer_possible_can_be_switched_off(cli, ledger):
    # Given a schedule that starts from a model which was removed
    request = {"architecture": "finetune", "start": new_id()}
    with ledger.transaction() as connection:
        set_schedule(connection, "birds", cron="0 3 * * *", after_corrections=None, request=request)

    # When its time changes, Then it is refused, and when it is switched off, it is not
    refused = cli("birds", "--cron", "0 4 * * *")
    assert (refused.exit_code, "There is no model" in refused.stderr) == (2, True)
    assert cli("birds", "--off").exit_code == 0
    assert listed(cli)["birds"]["next"] is None


def test_a_schedule_that_says_nothing_is_refused(cli):
    for arguments, advice in (
        (["birds", "--architecture", "cnn"], "say when to train"),
        (["birds", "--cron", "0 3 * * *", "--profile", "long", "--augment", "none"], "own augmentation"),
        (["mnist", "--cron", "0 3 * * *"], "Dataset mnist has not been added yet"),
        (["boats", "--cron", "0 3 * * *"], "There is no dataset 'boats'"),
        (["birds", "--cron", "0 3 * *"], "has 4 fields"),
        (["birds", "--off", "--cron", "0 3 * * *"], "Give --off alone"),
        (["--off"], "Name the dataset"),
        (["--cron", "0 3 * * *"], "Name the dataset"),
    ):
        refused = cli(*arguments)
        assert refused.exit_code == 2
        assert advice in refused.stderr
    assert listed(cli) == {}


# ---- a real process -----------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "celery", "-A", "worker.app", "beat", "--pidfile=", "--loglevel", "info"]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_plain_celery_beat_is_ours_and_writes_no_file(settings: Settings, tmp_path: Any) -> None:
    # given `celery beat` in an empty folder
    environment = settings.environment() | {"PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        COMMAND, cwd=tmp_path, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
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


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_beat_that_is_stopped_in_a_transaction_ends_at_once(
    settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    with killed_at_the_end(subprocess.Popen(COMMAND, cwd=tmp_path, env=settings.environment())) as process:
        # given a beat that waits for another writer of the ledger
        with ledger.transaction():
            until(settings.alive_file(BEAT).exists, "its first tick has begun")
            time.sleep(2)  # nothing shows from outside that it waits
            # when it is stopped, so that the signal takes effect as soon as beat has the lock itself
            process.terminate()
        # then it does not wait for that lock
        assert process.wait(SQLITE_BUSY_SECONDS / 2) == 0
