"""Schedule the retraining: Celery beat provides the time, the ledger allows one run per slot.

A *slot* is a scheduled time. When it comes, beat requests a training run in the ledger, with the slot in a
unique column, so each slot has at most one run however many beats there are. A missed slot has no run: none
starts late.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery.beat import Scheduler
from celery.schedules import ParseException, crontab

from jobs.errors import LabelmillError, SettingsError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.runs import clear_expired_run, request_run
from jobs.messages import RETRAIN_TASK
from jobs.queue import Publisher
from jobs.schema import RunState
from jobs.settings import Settings
from worker.learning.recipes import recipe_for

logger = logging.getLogger(__name__)

#: A slot older than this counts as missed: beat did not run, or the machine was asleep.
GRACE: Final = timedelta(minutes=10)

#: The pause before the request is retried if the ledger is unavailable.
RETRY_SECONDS: Final = 5.0


def beat_schedule(settings: Settings) -> dict[str, Any]:
    """Return beat's schedule. Raises SettingsError if the cron line is invalid."""
    if settings.retrain_cron == "never":
        return {}
    return {"retrain": {"task": RETRAIN_TASK, "schedule": _crontab(settings.retrain_cron)}}


def due_slot(schedule: crontab, now: datetime) -> datetime | None:
    """Return the latest scheduled time up to `now`, or None if none is within GRACE.

    It is in UTC, to the minute, so that two beats whose clocks differ slightly get the same slot.
    """
    minute = now.astimezone(UTC).replace(second=0, microsecond=0)
    for back in range(GRACE // timedelta(minutes=1)):
        slot = minute - timedelta(minutes=back)
        if (
            slot.minute in schedule.minute
            and slot.hour in schedule.hour
            and slot.day in schedule.day_of_month
            and slot.month in schedule.month_of_year
            and slot.isoweekday() % 7 in schedule.day_of_week
        ):
            return slot
    return None


class SlotScheduler(Scheduler):  # type: ignore[misc]  # Celery has no types
    """Beat's scheduler. It stores nothing on disk, and works without the broker."""

    #: The base class would connect here, and wait until the broker is available; the slot could be missed.
    producer = None

    #: The slot whose run is not in the ledger yet.
    _slot: datetime | None = None

    _retry_at = 0.0

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **_: Any) -> None:  # noqa: ARG002
        """Open the slot of an entry that is due."""
        if advance:
            self.reserve(entry)
        now = datetime.now(UTC)
        self._slot = due_slot(entry.schedule, now)
        if self._slot is None:
            logger.warning("missed a slot of the schedule; the next one is not affected")
        else:
            self._open_slot(self._slot, now)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Retry the open slot if necessary. Return the seconds until the next call."""
        delay: float = super().tick(*args, **kwargs)
        if self._slot is None:
            return delay
        if time.monotonic() >= self._retry_at:
            self._open_slot(self._slot, datetime.now(UTC))
        return min(delay, RETRY_SECONDS)

    def _open_slot(self, slot: datetime, now: datetime) -> None:
        """Request a training run for this slot unless it has one, and send the run's message."""
        if now - slot >= GRACE:
            logger.warning("missed the slot %s: the ledger was unavailable for too long", slot)
            self._slot = None
            return
        settings, run_id = self.app.labelmill_settings, new_id()
        # A new seed each time: the same seed and data would give the same model again.
        seed = secrets.randbelow(2**31)
        try:
            recipe = recipe_for(settings.retrain_architecture, settings.retrain_profile, seed=seed)
            with closing(Ledger(settings.ledger, pooled=False)) as ledger:
                clear_expired_run(ledger)
                with ledger.transaction() as connection:
                    state = request_run(connection, run_id, recipe=recipe.to_json(), slot=slot)
            if state == RunState.PENDING:
                with closing(Publisher(self.app)) as publisher:
                    publisher.request_run(run_id)
        except LabelmillError as error:
            logger.warning("retrying the slot %s in %g s: %s", slot, RETRY_SECONDS, error)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return
        self._slot = None
        if state is None:
            logger.info("the slot %s already has a training run", slot)
        else:
            logger.info("training run %s of the slot %s is %s", run_id, slot, state, extra={"run": run_id})


def _crontab(line: str) -> crontab:
    fields = line.split()
    if len(fields) != 5:
        raise SettingsError(
            f"LABELMILL_RETRAIN_CRON: {line!r} has {len(fields)} fields, but a cron line has five (minute, "
            "hour, day of month, month, day of week). To switch the schedule off, set it to `never`."
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
        raise SettingsError(f"LABELMILL_RETRAIN_CRON: {line!r} is not a valid cron line: {error}") from None


def _with_sunday_as_0(weekdays: str) -> str:
    """Return cron's field for the day of the week with 0 for Sunday, because Celery does not accept 7.

    Celery handles a range from another day to Sunday, but not one from Sunday to Sunday, which means all
    days. The 7 of a step (`*/7`) is not a day.
    """
    weekdays = re.sub(r"\b(0|sun|sunday)-7\b", "*", weekdays, flags=re.IGNORECASE)
    return re.sub(r"(?<!/)\b7\b", "0", weekdays)
