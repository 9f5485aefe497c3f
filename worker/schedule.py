"""Schedule training runs: Celery beat provides the time, the ledger allows one run per dataset and slot.

A *slot* is a scheduled time. When it comes, beat requests a training run in the ledger, with dataset and slot
in a unique index, so each slot has at most one run however many beats there are. A run that new corrections
trigger has the number of corrections in such an index. The schedules are in the ledger too, so beat follows a
change within seconds.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery.beat import Scheduler
from celery.schedules import ParseException, crontab
from celery.signals import beat_init
from sqlalchemy.engine import Connection

from jobs.errors import LabelmillError, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.clock import database_now
from jobs.ledger.learning.health import report_drift
from jobs.ledger.learning.runs import clear_expired_run, request_run, skip_slot
from jobs.ledger.learning.schedules import Schedule, is_anything_new, list_schedules, new_corrections
from jobs.ledger.metrics import latest_requests
from jobs.ledger.workers import BEAT
from jobs.models.training_request import TrainingRequest
from jobs.queue import Publisher
from jobs.schema import RunState
from worker.heartbeat import Heartbeat
from worker.learning.recipes import recipe_of
from worker.retention import Retention

logger = logging.getLogger(__name__)

#: A slot older than this counts as missed: beat did not run, the ledger was unavailable, or the machine was
#: asleep.
GRACE: Final = timedelta(minutes=10)

#: How often beat reads the schedules.
POLL_SECONDS: Final = 5.0

#: After this time, a slot without a run is overdue.
OVERDUE: Final = timedelta(minutes=1)

#: Seconds between two checks for drift, each of which can take seconds.
DRIFT_SECONDS: Final = 600.0

#: Replaces a cron line: train at no fixed time.
NEVER: Final = "never"

#: How many days ahead `next_slot` searches: 29 February may be eight years away.
_MOST_DAYS: Final = 8 * 366


def due_slot(schedule: crontab, now: datetime) -> datetime | None:
    """Return the latest scheduled time up to `now`, or None if none is within GRACE.

    It is in UTC, to the minute, so that two beats whose clocks differ slightly get the same slot.
    """
    minute = now.astimezone(UTC).replace(second=0, microsecond=0)
    for back in range(GRACE // timedelta(minutes=1)):
        slot = minute - timedelta(minutes=back)
        if slot.minute in schedule.minute and slot.hour in schedule.hour and _is_on(schedule, slot):
            return slot
    return None


def next_slot(schedule: crontab, now: datetime) -> datetime | None:
    """Return the first scheduled time after `now`, in UTC; None for a date that does not exist."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for days in range(_MOST_DAYS):
        day = midnight + timedelta(days=days)
        if not _is_on(schedule, day):
            continue
        for hour in sorted(schedule.hour):
            for minute in sorted(schedule.minute):
                slot = day.replace(hour=hour, minute=minute)
                if slot > now:
                    return slot
    return None


def overdue_slots(connection: Connection, schedules: Iterable[Schedule]) -> dict[str, datetime]:
    """Return, by dataset, the latest scheduled time if it is overdue: no run has been requested since.

    A run that a person requested counts, too.
    """
    until = database_now(connection) - OVERDUE
    slots = {
        schedule.dataset: last_slot(parse_cron(schedule.cron), since=schedule.changed_at, until=until)
        for schedule in schedules
        if schedule.cron
    }
    requested = latest_requests(connection)
    return {
        dataset: slot
        for dataset, slot in slots.items()
        if slot is not None and (dataset not in requested or requested[dataset] < slot)
    }


def last_slot(schedule: crontab, *, since: datetime, until: datetime) -> datetime | None:
    """Return the last scheduled time from `since` to `until`, in UTC, or None."""
    day = until.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    while day > since - timedelta(days=1):
        if _is_on(schedule, day):
            slots = (
                day.replace(hour=hour, minute=minute) for hour in schedule.hour for minute in schedule.minute
            )
            if past := [slot for slot in slots if since <= slot <= until]:
                return max(past)
        day -= timedelta(days=1)
    return None


def _is_on(schedule: crontab, day: datetime) -> bool:
    return (
        day.day in schedule.day_of_month
        and day.month in schedule.month_of_year
        and day.isoweekday() % 7 in schedule.day_of_week
    )


class SlotScheduler(Scheduler):  # type: ignore[misc]  # Celery has no types
    """Beat's scheduler. It stores nothing on disk, and works without the broker."""

    #: The base class would connect here, and wait until the broker is available; a slot could be missed.
    producer = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requested: dict[str, datetime] = {}  # by dataset, the latest slot for which a run was requested
        self._looked_for_drift_at = -DRIFT_SECONDS
        settings = self.app.labelmill_settings
        self._heartbeat = Heartbeat(queue=BEAT, alive_file=settings.alive_file(BEAT))
        self._retention = Retention(settings)
        self._trouble = ""  # why the latest tick failed; it is logged once

    def tick(self, *_: Any, **__: Any) -> float:
        """Request due runs, send a heartbeat, purge, report drift. Return the seconds until the next call."""
        settings = self.app.labelmill_settings
        self._heartbeat.show_alive()
        troubles: list[str] = []
        try:
            with closing(Ledger(settings.ledger, pooled=False)) as ledger:
                with ledger.reading() as connection:
                    schedules = list_schedules(connection)
                for schedule in schedules:
                    try:
                        self._request_due_run(ledger, schedule)
                    except UserError as error:  # one schedule must not stop the others
                        troubles.append(f"{schedule.dataset}: {error}")
                self._heartbeat.tick(ledger, [os.getpid()])
                self._retention.tick(ledger)
                if time.monotonic() - self._looked_for_drift_at >= DRIFT_SECONDS:
                    self._looked_for_drift_at = time.monotonic()
                    report_drift(ledger)
        except LabelmillError as error:
            troubles.append(str(error))
        trouble = "; ".join(troubles)
        if trouble != self._trouble:
            if trouble:
                logger.warning("no run is requested for now: %s", trouble)
            else:
                logger.info("runs are requested again")
            self._trouble = trouble
        now = time.time()
        return min(POLL_SECONDS, 60 - now % 60)

    def close(self) -> None:
        """Delete beat's heartbeat, and stop."""
        with suppress(LabelmillError), closing(Ledger(self.app.labelmill_settings.ledger)) as ledger:
            self._heartbeat.end(ledger)
        super().close()

    def _request_due_run(self, ledger: Ledger, schedule: Schedule) -> None:
        """Request a run if a slot is due or enough corrections are new. Send the run's message."""
        now = datetime.now(UTC)
        slot = due_slot(parse_cron(schedule.cron), now) if schedule.cron else None
        if slot is not None and slot >= schedule.changed_at and slot != self._requested.get(schedule.dataset):
            clear_expired_run(ledger, schedule.dataset)
            with ledger.reading() as connection:
                is_needed = schedule.always or is_anything_new(connection, schedule)
            self._request(ledger, schedule, request_run if is_needed else skip_slot, slot=slot)
            self._requested[schedule.dataset] = slot
        if schedule.after_corrections is not None:
            with ledger.reading() as connection:
                count, newest = new_corrections(connection, schedule.dataset)
            if newest is not None and count >= schedule.after_corrections:
                self._request(ledger, schedule, request_run, corrections_seen=newest)

    def _request(
        self, ledger: Ledger, schedule: Schedule, request: Callable[..., RunState | None], **cause: Any
    ) -> None:
        run_id = new_id()
        recipe = recipe_of(TrainingRequest.of(dataset=schedule.dataset, **schedule.request))
        with ledger.transaction() as connection:
            state = request(connection, run_id, dataset=schedule.dataset, recipe=recipe.to_json(), **cause)
        if state == RunState.PENDING:
            with closing(Publisher(self.app)) as publisher:
                publisher.request_run(run_id)
        if state is not None:
            logger.info("training run %s on %s is %s", run_id, schedule.dataset, state, extra={"run": run_id})


@beat_init.connect
def _end_before_closing(**_: Any) -> None:
    """Make a stop signal roll back the current transaction before beat deletes its heartbeat.

    Celery's own handler deletes it at once, and would wait for a lock that this process holds itself.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())


def parse_cron(line: str) -> crontab:
    """Return the schedule of a cron line with its five fields. Raises UserError."""
    fields = line.split()
    if len(fields) != 5:
        raise UserError(
            f"{line!r} has {len(fields)} fields, but a cron line has five (minute, hour, day of month, "
            f"month, day of week). To switch the schedule off, set it to `{NEVER}`."
        )
    try:
        minute, hour, day, month, weekday = fields
        return crontab(
            minute=minute,
            hour=hour,
            day_of_month=day,
            month_of_year=month,
            day_of_week=_with_sunday_as_0(weekday),
        )
    except (ParseException, ValueError) as error:
        raise UserError(f"{line!r} is not a valid cron line: {error}") from None


def _with_sunday_as_0(weekdays: str) -> str:
    """Return the field for the day of the week with 0 for Sunday, because Celery does not accept cron's 7.

    Celery handles a range from another day to Sunday, but not one from Sunday to Sunday, which means all
    days. The 7 of a step (`*/7`) is not a day.
    """
    weekdays = re.sub(r"\b(0|sun|sunday)-7\b", "*", weekdays, flags=re.IGNORECASE)
    return re.sub(r"(?<!/)\b7\b", "0", weekdays)
