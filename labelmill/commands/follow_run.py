"""Follow a training run at the console: progress, result, exit code, and the message on Ctrl-C."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from jobs.ledger.learning.models import StoredVerdict
from jobs.ledger.learning.runs import Run
from jobs.models.dataset import describe_accuracy
from jobs.schema import RunState
from labelmill.client import Client
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import ExitCode, pluralize, say
from labelmill.local.training import choice_line, epoch_line

if TYPE_CHECKING:
    from labelmill.local.stack import Stack

#: If a run waits longer than this, probably no trainer is running.
_NO_TRAINER_SECONDS: Final = 15.0

#: Names of data sources, for people.
_SOURCES: Final = {"mnist": "MNIST", "mnist-sample": "a sample of MNIST", "folder": "a folder of your own"}


def watch_run(client: Client, run_id: str, *, own_stack: Stack | None = None) -> Run:
    """Follow the run to its end and show its progress. On Ctrl-C, say how to continue and exit with 130.

    `own_stack`: the stack that was started for this run, so Ctrl-C cancels the run. Raises Unavailable if one
    of its processes ends before the run does.
    """
    epochs_shown = 0
    data_shown = advised = False
    try:
        with ProgressLine("training") as progress:
            for run in client.follow_run(run_id):
                if run.data is not None and not data_shown:
                    say(data_line(run))
                    data_shown = True
                if run.epochs_done > epochs_shown:
                    for epoch in client.epochs(run_id)[epochs_shown:]:
                        say(epoch_line(epoch, run.recipe["epochs"]))
                        epochs_shown = epoch.epoch
                if own_stack is None and not advised and _is_overdue(run) and not client.trainer_is_running():
                    embedded = client.settings.embedded_broker
                    start = "labelmill up" if embedded else "labelmill worker --trainer"
                    say(f"No trainer is running, so training run {run_id} waits: `{start}` starts one.")
                    advised = True
                progress.update(epochs_shown, total=run.recipe["epochs"], note=_note(run))
                if own_stack is not None and not run.finished:
                    own_stack.check_running()
    except KeyboardInterrupt:
        if own_stack is not None:
            client.cancel_run(run_id)
            say(f"Interrupted; training run {run_id} is cancelled and has changed nothing.")
        else:
            say(
                f"Interrupted; training run {run_id} continues.\n"
                f"  follow it:  labelmill runs show {run_id} --watch\n"
                f"  stop it:    labelmill runs cancel {run_id}"
            )
        raise SystemExit(ExitCode.INTERRUPTED) from None
    for line in closing_lines(run, client.verdict_on(run_id)):
        say(line)
    return run


def closing_lines(run: Run, verdict: StoredVerdict | None) -> list[str]:
    """Return how a run ended, and why."""
    if run.state != RunState.DONE:
        return [f"training run {run.id} is {run.state}" + (f": {run.error}" if run.error else "")]
    accuracy = describe_accuracy(run.accuracy, run.dataset, run.dataset_version)
    lines = [f"model {run.model_id}, accuracy {accuracy}"]
    lines += [f"  {'yes' if check['passed'] else 'NO '}  {check['text']}" for check in _checks(verdict)]
    return [*lines, run.verdict or ""]


def data_line(run: Run) -> str:
    """Return what a run trains on, and what was chosen for it, in one line.

    Its data must be known already.
    """
    data = run.data or {}
    source = _SOURCES.get(run.data_source, run.data_source)
    line = (
        f"{pluralize(data['train_images'], 'training image')} from {source}, "
        f"{data['validation_images']:,} held out, {data['evaluation_images']:,} to evaluate"
    )
    live = data["live_images"]
    if data["corrections"] or live or data["left_out"]:
        line += (
            f"; {pluralize(data['corrections'], 'correction')} included, {live:,} in the live set, "
            f"{data['left_out']:,} skipped"
        )
    return f"{line}; {choice_line(run.recipe, data['input'])}" if run.recipe.get("augment") else line


def exit_code_of_run(run: Run, verdict: StoredVerdict | None) -> ExitCode:
    """Return the exit code for a finished run."""
    if run.state != RunState.DONE:
        return ExitCode.FAILED
    return ExitCode.OK if verdict is not None and verdict.promote else ExitCode.WITH_ERRORS


def run_details_to_json(client: Client, run: Run) -> dict[str, Any]:
    """Return a run as a dictionary with its epochs and the gate's verdict, for `--json`."""
    verdict = client.verdict_on(run.id)
    epochs = [dict(epoch._mapping) for epoch in client.epochs(run.id)]
    for epoch in epochs:
        del epoch["run_id"]
    return asdict(run) | {
        "promoted": None if verdict is None else verdict.promote,
        "forced": None if verdict is None else verdict.forced,
        "checks": _checks(verdict),
        "epochs": epochs,
    }


def _checks(verdict: StoredVerdict | None) -> list[dict[str, Any]]:
    return [] if verdict is None else verdict.checks


def _note(run: Run) -> str:
    if run.state == RunState.PENDING:
        return "waiting for a trainer"
    if run.state != RunState.RUNNING:
        return ""
    if run.silent_since is not None:
        return "its trainer sends no heartbeat"
    if run.data is None:
        return "loading the data"
    epochs = run.recipe["epochs"]
    return f"epoch {run.epochs_done + 1} of {epochs}" if run.epochs_done < epochs else "evaluating"


def _is_overdue(run: Run) -> bool:
    """Return whether a trainer would have claimed the run by now."""
    if run.state != RunState.PENDING:
        return False
    return (datetime.now(UTC) - run.requested_at).total_seconds() >= _NO_TRAINER_SECONDS
