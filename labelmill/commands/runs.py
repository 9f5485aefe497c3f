"""`labelmill runs`: list the training runs, show one, or stop one."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any, Final

import typer
from sqlalchemy.engine import Row

from jobs.ledger.learning.models import StoredVerdict
from jobs.ledger.learning.runs import Run
from jobs.models.dataset import describe_version
from labelmill.client import Client
from labelmill.commands.follow_run import (
    closing_lines,
    data_line,
    exit_code_of_run,
    run_details_to_json,
    watch_run,
)
from labelmill.commands.groups import listing_group
from labelmill.commands.options import AsJson, AsJsonList
from labelmill.console.drawing import curve
from labelmill.console.tables import Column, field_lines, print_rows, short_time
from labelmill.console.terminal import (
    examples,
    format_time,
    print_data,
    print_json,
    printable_lines,
    report_errors,
    say,
)
from labelmill.reporting.run_lines import added_line

app = listing_group(
    "List the training runs, show one, or stop one.", "labelmill runs", "labelmill runs show RUN --watch"
)


def _requested_by(run: Run) -> str:
    return "a person" if run.slot is None else f"schedule {run.slot:%Y-%m-%d %H:%M}"


def _heartbeat_note(run: Run) -> str:
    return f"no heartbeat since {format_time(run.silent_since)}" if run.silent_since else ""


_COLUMNS: Final = (
    Column("run", attrgetter("id")),
    Column("dataset", lambda run: describe_version(run.dataset, run.dataset_version), min_width=8),
    Column("state", attrgetter("state")),
    Column("requested (UTC)", lambda run: short_time(run.requested_at), leave_out=2),
    Column("by", _requested_by, leave_out=3),
    Column(
        "recipe",
        lambda run: f"{run.recipe.get('architecture') or '-'} {run.recipe.get('profile', '-')}",
        leave_out=1,
    ),
    Column("epochs", lambda run: f"{run.epochs_done}/{run.recipe.get('epochs', '-')}", right=True),
    Column("accuracy", lambda run: "-" if run.accuracy is None else f"{run.accuracy:.4f}", right=True),
    Column("verdict", lambda run: run.verdict or run.error or _heartbeat_note(run), min_width=20),
)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]


@app.command("list", epilog=examples("labelmill runs list --limit 5 --json"))
@report_errors
def list_all(
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    as_json: AsJsonList = False,
) -> None:
    """List the latest training runs, newest first."""
    with Client() as client:
        found = client.runs(limit=limit)
    print_rows(_COLUMNS, found, as_json=as_json)


@app.command(
    epilog=examples("labelmill runs show 06h0w4r0rf0dkckt --watch", "labelmill runs show RUN --json")
)
@report_errors
def show(
    run: RunId,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow the run to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a training run: its data, its epochs, and the gate's verdict on its model.

    With --watch, the exit codes are those of `labelmill retrain --wait`.
    """
    with Client() as client:
        run = client.run_id(run)
        found = watch_run(client, run) if watch_it else client.run(run)
        verdict = client.verdict_on(run)
        if as_json:
            print_json(run_details_to_json(client, found))
        else:
            print_data(printable_lines(_format_run(found, client.epochs(run), verdict)))
    if watch_it:
        raise SystemExit(exit_code_of_run(found, verdict))


@app.command(epilog=examples("labelmill runs cancel 06h0w4r0rf0dkckt"))
@report_errors
def cancel(run: RunId, as_json: AsJson = False) -> None:
    """Stop a training run; it then changes nothing.

    Its trainer notices within seconds, and is then free for another run.
    """
    with Client() as client:
        run = client.run_id(run)
        found = client.cancel_run(run)
    say(f"training run {run} is cancelled")
    if as_json:
        print_json(found)


def _format_run(run: Run, epochs: list[Row[float]], verdict: StoredVerdict | None) -> str:
    silence = _heartbeat_note(run)
    lines = field_lines(
        ("run", run.id),
        ("dataset", describe_version(run.dataset, run.dataset_version)),
        *([("added", added)] if (added := added_line(run)) else []),
        ("state", f"{run.state}, but {silence}" if silence else str(run.state)),
        ("requested by", _requested_by(run)),
        ("recipe", ", ".join(f"{name} {value}" for name, value in _options_in_use(run.recipe).items())),
        ("data", data_line(run) if run.data else "-"),
        ("fingerprint", run.data_fingerprint or "-"),
        ("trainer", run.owner or "-"),
        ("requested", format_time(run.requested_at)),
        ("started", format_time(run.started_at)),
        ("finished", format_time(run.finished_at)),
    )
    if epochs:
        lines += [
            "",
            f"{'epoch':>5}{'loss':>10}{'accuracy':>10}{'held-out':>10}{'accuracy':>10}{'seconds':>9}",
        ]
        lines += [
            f"{epoch.epoch:>5}{epoch.loss:>10.4f}{epoch.accuracy:>10.4f}{epoch.val_loss:>10.4f}"
            f"{epoch.val_accuracy:>10.4f}{epoch.seconds:>9.1f}"
            for epoch in epochs
        ]
        lines += [
            "",
            f"{'loss':<20}{curve([epoch.loss for epoch in epochs])}",
            f"{'held-out accuracy':<20}{curve([epoch.val_accuracy for epoch in epochs])}",
        ]
    if run.finished:
        lines += ["", *closing_lines(run, verdict, epochs)]
    return "\n".join(lines)


def _options_in_use(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe without the steps that it does not use."""
    flat = {**recipe, **(recipe.get("augmentation") or {}), "augmentation": None}
    return {
        name: f"{value:.3g}" if isinstance(value, float) else value
        for name, value in flat.items()
        if value not in (None, False, 0)
    }
