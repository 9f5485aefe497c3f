"""`labelmill schedule`: when each dataset's model is trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from jobs.errors import UserError
from jobs.models.training_request import TrainingRequest
from labelmill.client import Client
from labelmill.client.schedules import ScheduleStatus
from labelmill.commands.options import training_options
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, report_errors

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill schedule",
        "labelmill schedule birds --cron '0 3 * * 0'",
        "labelmill schedule birds --after-corrections 500 --architecture cnn",
        "labelmill schedule birds --always",
        "labelmill schedule birds --off",
    )
)
@report_errors
@training_options(*TrainingRequest.HOW)
def schedule(
    *,
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="The dataset. Default: list all schedules.")
    ] = None,
    cron: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            help="Train at these times: five cron fields, in UTC, or `never`. Default: unchanged.",
        ),
    ] = None,
    after_corrections: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Train as soon as N corrections are new since the latest training run; 0 switches this off. "
            "Default: unchanged.",
        ),
    ] = None,
    always: Annotated[
        bool | None,
        typer.Option(
            "--always/--if-new",
            help="Train at the times of the cron line even if nothing is new, or only if something is. "
            "Default: unchanged, at first --if-new.",
        ),
    ] = None,
    how: dict[str, Any],
    off: Annotated[bool, typer.Option("--off", help="Switch the whole schedule off.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Set when a dataset's model is trained, and list the schedules.

    A cron line has five fields in UTC: minute, hour, day of the month, month and day of the week (0 and 7 are
    Sunday). All five must match. Beat follows a change within seconds. Each dataset gets one run per
    scheduled time, even if several beats run. Unless --always is set, the run is `skipped` if no image, no
    correction and no option is new since the schedule's last run. If the dataset's previous run is still
    active, the new one is `skipped`, too. The same happens to a time that beat misses by ten minutes, and to
    a run that no trainer claims within an hour, unless trainers are executing other runs. The new model
    becomes champion only if it passes the gate. When the first training adds `mnist`, it gets the cron line
    `0 3 * * 0`: every Sunday at 03:00.

    The options that say how to train are those of `labelmill retrain`: if you give any, they replace all
    earlier ones.
    """
    times = {"cron": cron, "after_corrections": after_corrections, "always": always}
    changes = {name: value for name, value in times.items() if value is not None} | how
    if off and changes:
        raise UserError("Give --off alone: it switches the whole schedule off.")
    with Client() as client:
        if dataset is None and (off or changes):
            raise UserError("Name the dataset, for example `labelmill schedule mnist --off`.")
        if dataset is not None and off:
            client.schedule(dataset, cron="never", after_corrections=0)
        elif dataset is not None and changes:
            client.schedule(dataset, **changes)
        found = [each for each in client.schedules() if dataset in (None, each.schedule.dataset)]
    print_rows(_COLUMNS, found, as_json=as_json, row=_to_json)


def _to_json(status: ScheduleStatus) -> dict[str, Any]:
    return asdict(status.schedule) | {"next": status.next_slot, "new_corrections": status.new_corrections}


def _corrections(status: ScheduleStatus) -> str:
    wanted = status.schedule.after_corrections
    return f"{status.new_corrections:,} of {wanted:,}" if wanted else "-"


def _training(status: ScheduleStatus) -> str:
    asked = {name: value for name, value in status.schedule.request.items() if value is not None}
    return ", ".join(form.format(asked[name]) for name, form in _SHOWN.items() if name in asked) or "default"


#: The training options of a schedule in the order in which they are shown, and how.
_SHOWN: Final = {
    "architecture": "{}",
    "profile": "{}",
    "start": "from {}",
    "size": "{0}x{0}",
    "augment": "augment {}",
    "max_minutes": "at most {:g} min",
}


_COLUMNS: Final = (
    Column("dataset", lambda status: status.schedule.dataset, min_width=10),
    Column("cron (UTC)", lambda status: status.schedule.cron or "never"),
    Column("next (UTC)", lambda status: short_time(status.next_slot)),
    Column("new corrections", _corrections, right=True),
    Column("always", lambda status: "yes" if status.schedule.always else "-", leave_out=2),
    Column("trains", _training, leave_out=1),
)
