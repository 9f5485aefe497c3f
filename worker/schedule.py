"""When the model is retrained: the entry for Celery beat."""

from __future__ import annotations

from typing import Any

from celery.schedules import ParseException, crontab

from jobs.errors import SettingsError
from jobs.queue import RETRAIN_TASK
from jobs.settings import Settings


def beat_schedule(settings: Settings) -> dict[str, Any]:
    """Beat's schedule. Raises SettingsError where the cron line is none."""
    if settings.retrain_cron == "never":
        return {}
    return {"retrain": {"task": RETRAIN_TASK, "schedule": _crontab(settings.retrain_cron)}}


def _crontab(line: str) -> crontab:
    fields = line.split()
    if len(fields) != 5:
        raise SettingsError(
            f"LABELMILL_RETRAIN_CRON: {line!r} has {len(fields)} fields, not the five of cron "
            "(minute, hour, day of month, month, day of week), nor is it `never`."
        )
    try:
        minute, hour, day, month, weekday = fields
        return crontab(minute=minute, hour=hour, day_of_month=day, month_of_year=month, day_of_week=weekday)
    except (ParseException, ValueError) as error:
        raise SettingsError(f"LABELMILL_RETRAIN_CRON: {line!r} is no cron line: {error}") from None
