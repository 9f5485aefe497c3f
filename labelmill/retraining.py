"""Follow a training run at the console: progress, result, exit code, and the message on Ctrl-C."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from jobs.ledger.models import StoredVerdict
from jobs.ledger.runs import Run
from jobs.schema import RunState
from labelmill.client import Client
from labelmill.console import ExitCode, counted, say, time_words
from labelmill.follow import who_may_be_missing
from labelmill.progress import ProgressLine
from labelmill.training import epoch_line

if TYPE_CHECKING:
    from labelmill.stack import Stack

#: If a run waits longer than this, probably no trainer is running.
_NO_TRAINER_SECONDS: Final = 15.0

#: Names of data sources, for people.
_SOURCES: Final = {"mnist": "MNIST", "mnist-sample": "a sample of MNIST", "folder": "a folder of your own"}


def watch_run(client: Client, run_id: str, *, own_stack: Stack | None = None) -> Run:
    """Follow the run to its end and show its progress. On Ctrl-C, say how to continue and exit with 130.

    `own_stack`: the stack that was started for this run, so Ctrl-C cancels the run. Raises Unavailable if one
    of its processes ends before the run does.
    """
    told = 0
    data_told = advised = False
    embedded = client.settings.embedded_broker
    try:
        with ProgressLine("training") as progress:
            for run in client.follow_run(run_id):
                if run.data is not None and not data_told:
                    say(data_line(run))
                    data_told = True
                if run.epochs_done > told:
                    for epoch in client.epochs(run_id)[told:]:
                        say(epoch_line(epoch, run.recipe["epochs"]))
                        told = epoch.epoch
                if own_stack is None and not advised and _waits_long(run) and not client.trainer_is_running():
                    start = "labelmill up" if embedded else "labelmill worker --trainer"
                    say(f"No trainer is running, so training run {run_id} waits: `{start}` starts one.")
                    advised = True
                note = _note(run, own_stack=own_stack is not None, embedded=embedded)
                progress.update(told, total=run.recipe["epochs"], note=note)
                if own_stack is not None and not run.finished:
                    own_stack.must_run()
    except KeyboardInterrupt:
        if own_stack is not None:
            client.cancel_run(run_id)
            say(f"Interrupted; training run {run_id} is cancelled and changes nothing.")
        else:
            say(
                f"Interrupted; training run {run_id} goes on.\n"
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
    lines = [f"model {run.model_id}, accuracy {run.accuracy or 0:.4f} on the evaluation images"]
    lines += [f"  {'yes' if check['passed'] else 'NO '}  {check['text']}" for check in _checks(verdict)]
    return [*lines, run.verdict or ""]


def data_line(run: Run) -> str:
    """Return what a run trains on, in one line. Its data must be known already."""
    data = run.data or {}
    source = _SOURCES.get(run.data_source, run.data_source)
    line = (
        f"{counted(data['train_images'], 'training image')} from {source}, "
        f"{data['validation_images']:,} held out, {data['evaluation_images']:,} to evaluate"
    )
    if data["corrections"] or data["left_out"]:
        line += f"; {counted(data['corrections'], 'correction')} included, {data['left_out']:,} skipped"
    return line


def exit_code_of_run(run: Run, verdict: StoredVerdict | None) -> ExitCode:
    """Return the exit code for a finished run."""
    if run.state != RunState.DONE:
        return ExitCode.FAILED
    return ExitCode.OK if verdict is not None and verdict.promote else ExitCode.WITH_ERRORS


def asked_by(run: Run) -> str:
    """Return who requested the run: the schedule, with its time, or a person."""
    return "a person" if run.slot is None else f"schedule {run.slot:%Y-%m-%d %H:%M}"


def run_state_words(run: Run) -> str:
    """Return a run's state, for people."""
    if run.silent_since is None:
        return str(run.state)
    return f"{run.state}, but {silence_words(run)}"


def silence_words(run: Run) -> str:
    """Return since when a run's trainer has sent no heartbeat."""
    return f"no heartbeat since {time_words(run.silent_since)}"


def run_to_json(run: Run) -> dict[str, Any]:
    """Return a run as a dictionary, for `--json`."""
    return asdict(run)


def run_in_full(client: Client, run: Run) -> dict[str, Any]:
    """Return a run as a dictionary with its epochs and the gate's verdict, for `--json`."""
    verdict = client.verdict_on(run.id)
    epochs = [dict(epoch._mapping) for epoch in client.epochs(run.id)]
    for epoch in epochs:
        del epoch["run_id"]
    return run_to_json(run) | {
        "promoted": None if verdict is None else verdict.promote,
        "forced": None if verdict is None else verdict.forced,
        "checks": _checks(verdict),
        "epochs": epochs,
    }


def _checks(verdict: StoredVerdict | None) -> list[dict[str, Any]]:
    return [] if verdict is None else verdict.checks


def _note(run: Run, *, own_stack: bool, embedded: bool) -> str:
    if run.state == RunState.PENDING:
        if own_stack or not _waits_long(run):
            return "waiting for the trainer"
        return who_may_be_missing("trainer", embedded=embedded)
    if run.state != RunState.RUNNING:
        return ""
    if run.silent_since is not None:
        return "its trainer sends no heartbeat"
    if run.data is None:
        return "loading the data"
    epochs = run.recipe["epochs"]
    return f"epoch {run.epochs_done + 1} of {epochs}" if run.epochs_done < epochs else "evaluating"


def _waits_long(run: Run) -> bool:
    """Return whether a trainer would have claimed the run by now."""
    if run.state != RunState.PENDING or run.requested_at is None:
        return False
    return (datetime.now(UTC) - run.requested_at).total_seconds() >= _NO_TRAINER_SECONDS
