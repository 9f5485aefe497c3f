"""The client's methods for schedules: when each dataset's model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jobs.errors import UserError
from jobs.ledger.learning.schedules import (
    Schedule,
    find_schedule,
    list_schedules,
    new_corrections,
    set_schedule,
)
from jobs.models.training_request import TrainingRequest
from labelmill.client.installation import accept_numpy_numbers
from labelmill.client.training import TrainingMethods


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """A dataset's schedule, its next time, and how many corrections are new."""

    schedule: Schedule
    next_slot: datetime | None  # None without a cron line
    new_corrections: int  # since the latest training run was requested


class ScheduleMethods(TrainingMethods):
    """The client's methods for schedules."""

    def schedules(self) -> list[ScheduleStatus]:
        """Return the schedules of all datasets that have one, by name."""
        with self.ledger.reading() as connection:
            found = list_schedules(connection)
        return list(map(self.schedule_status, found))

    def schedule_status(self, schedule: Schedule) -> ScheduleStatus:
        """Return a schedule with its next time, and how many corrections of its dataset are new."""
        from worker.schedule import next_slot, parse_cron

        with self.ledger.reading() as connection:
            corrections, _ = new_corrections(connection, schedule.dataset)
        slot = next_slot(parse_cron(schedule.cron), datetime.now(UTC)) if schedule.cron else None
        return ScheduleStatus(schedule, slot, corrections)

    @accept_numpy_numbers
    def schedule(
        self,
        dataset: str,
        *,
        cron: str | None = None,
        after_corrections: int | None = None,
        always: bool | None = None,
        **options: Any,
    ) -> Schedule:
        """Train the dataset's model at the times of a cron line, after so many new corrections, or both.

        A time that is left out stays as it is. `cron="never"` and `after_corrections=0` switch one of them
        off; with both off, nothing is trained. At the times of the cron line, nothing is trained if no image,
        correction or option is new since the schedule's last run, unless `always`. `options` are the
        fields of TrainingRequest that say how to train: without any of them, the training stays as it is, and
        otherwise all of them are replaced.
        Raises UserError if the cron line is malformed, the options do not fit together, or a dataset without
        a schedule gets no time; NotFound if there is no such dataset or model.
        """
        from worker.schedule import NEVER, parse_cron

        if cron not in (None, NEVER):
            parse_cron(cron)
        if after_corrections is not None and after_corrections < 0:
            raise UserError(f"after corrections must be 0 or more, got {after_corrections}.")
        with self.ledger.reading() as connection:
            present = find_schedule(connection, dataset)
            if present is None and cron is None and after_corrections is None:
                raise UserError(
                    f"Dataset {dataset} has no schedule: say when to train, for example `labelmill schedule "
                    f"{dataset} --cron '0 3 * * 0'` or `--after-corrections 500`."
                )
            request = TrainingRequest.of(dataset=dataset, **options)
            how = request.how or (present.request if present else {})
            if cron is None:
                cron = present.cron if present else None
            if after_corrections is None:
                after_corrections = present.after_corrections if present else None
            if always is None:
                always = present is not None and present.always
            is_off = cron in (None, NEVER) and not after_corrections
            # A schedule that can no longer be followed can still be switched off.
            if present is None or how != present.request or not is_off:
                self.check_request(connection, TrainingRequest.of(dataset=dataset, **how))
        with self.ledger.transaction() as connection:
            self.on_change(connection, "set schedule", dataset)
            return set_schedule(
                connection,
                dataset,
                cron=None if cron == NEVER else cron,
                after_corrections=after_corrections or None,
                request=how,
                always=always,
            )
