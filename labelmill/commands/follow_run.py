"""Follow a training run at the console: progress, result, exit code, and the message on Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from jobs.errors import Conflict
from jobs.extras import require_decoders, require_tensorflow
from jobs.ledger.learning.datasets import latest_version
from jobs.ledger.learning.models import StoredVerdict, model_to_start_from
from jobs.ledger.learning.runs import RUN_GRACE_SECONDS, Run, was_trained_on
from jobs.models.backbone import ADD_BACKBONE
from jobs.models.dataset import MNIST, describe_accuracy
from jobs.models.training_request import TrainingRequest
from jobs.schema import RunState
from labelmill.client import Client
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import ExitCode, format_duration, format_time, pluralize, say
from labelmill.local.own_trainer import OwnTrainer
from labelmill.reporting.run_lines import end_line

if TYPE_CHECKING:
    from sqlalchemy.engine import Row

#: If a run waits longer than this, probably no trainer is running.
_NO_TRAINER_SECONDS: Final = 15.0

#: How long a training takes at most that a person requests on their own machine, unless they say otherwise.
_OWN_MACHINE_MINUTES: Final = 10.0


def retrain(
    client: Client,
    request: TrainingRequest,
    *,
    keep_champion: bool = False,
    here: bool = False,
    on_request: Callable[[str], None] = lambda _run_id: None,
) -> Run:
    """Request a training run and follow it to its end. With `here`, execute it in this process.

    `on_request` is called with the run's id. Raises what `Client.retrain` and `watch_run` raise, UserError
    without TensorFlow.
    """
    if here:  # first, so that no run is requested that nothing executes
        require_tensorflow()
    run_id = request_run(client, request, keep_champion=keep_champion)
    on_request(run_id)
    if not here:
        return watch_run(client, run_id)
    with OwnTrainer(client.settings, run_id) as trainer:
        return watch_run(client, run_id, own_trainer=trainer)


def request_run(client: Client, request: TrainingRequest, *, keep_champion: bool = False) -> str:
    """Request a training run and return its id. If it is on `mnist`, add that first if it is missing."""
    if request.dataset == MNIST:
        add_mnist(client)
    run_id = client.retrain(
        request,
        keep_champion=keep_champion,
        # Where the broker is embedded, a person waits for it, and works on the same machine.
        default_minutes=_OWN_MACHINE_MINUTES if client.settings.embedded_broker else None,
        on_wait=_report_silent_trainer,
    )
    _report_unknown_start(client, client.run(run_id))
    return run_id


def _report_unknown_start(client: Client, run: Run) -> None:
    """Print it if the run fine-tunes a model that may have learnt the test images."""
    if run.recipe["architecture"] != "finetune":
        return
    with client.ledger.reading() as connection:
        start = model_to_start_from(connection, run.dataset, run.recipe["start"])
        if was_trained_on(connection, start.id, run.dataset):
            return
    say(
        f"model {start.id} was not trained on {run.dataset}: if it has learnt its test images, the new model "
        "seems better than it is"
    )


def add_mnist(client: Client, *, allow_sample: bool = False) -> None:
    """Add the dataset `mnist` if it is missing. Raises what `add_mnist_if_missing` raises."""
    with client.ledger.reading() as connection:
        if latest_version(connection, MNIST) is not None:
            return
    require_decoders(f"Adding {MNIST}, which `labelmill train` does also where a trainer runs,")
    from labelmill.datasets.mnist import add_mnist_if_missing

    with ProgressLine(f"adding {MNIST}") as progress:
        add_mnist_if_missing(
            client.ledger,
            client.store,
            client.settings,
            allow_sample=allow_sample,
            say=say,
            on_progress=progress.update,
        )


def _report_silent_trainer(run: Run) -> None:
    """Print why a requested run does not start immediately."""
    say(
        f"training run {run.id} is running, but its trainer has sent no heartbeat since "
        f"{format_time(run.silent_since)}: waiting up to {RUN_GRACE_SECONDS:g} seconds for one"
    )


def watch_run(client: Client, run_id: str, *, own_trainer: OwnTrainer | None = None) -> Run:
    """Follow the run to its end and show its progress. On Ctrl-C, say how to continue and exit with 130.

    If `own_trainer` executes it, Ctrl-C cancels the run. Raises Unavailable if that trainer ends before the
    run does.
    """
    epochs_shown = 0
    data_shown = advised = False
    try:
        with ProgressLine("training") as progress:
            for run in client.follow_run(run_id):
                if run.data is not None and not data_shown:
                    _say_data(client, run)
                    data_shown = True
                if run.epochs_done > epochs_shown:
                    for epoch in client.epochs(run_id)[epochs_shown:]:
                        say(epoch_line(epoch, run.recipe["epochs"]))
                        epochs_shown = epoch.epoch
                if (
                    own_trainer is None
                    and not advised
                    and _is_overdue(run)
                    and not client.trainer_is_running()
                ):
                    embedded = client.settings.embedded_broker
                    start = "labelmill up" if embedded else "labelmill worker --trainer"
                    say(f"No trainer is running, so training run {run_id} waits: `{start}` starts one.")
                    advised = True
                progress.update(epochs_shown, total=run.recipe["epochs"], note=_note(run))
                if own_trainer is not None and not run.finished:
                    own_trainer.check_running()
    except KeyboardInterrupt:
        if own_trainer is not None:
            with suppress(Conflict):  # it has just finished
                client.cancel_run(run_id)
            say(f"Interrupted; training run {run_id} is cancelled and has changed nothing.")
        else:
            say(
                f"Interrupted; training run {run_id} continues.\n"
                f"  follow it:  labelmill runs show {run_id} --watch\n"
                f"  stop it:    labelmill runs cancel {run_id}"
            )
        raise SystemExit(ExitCode.INTERRUPTED) from None
    for line in closing_lines(run, client.verdict_on(run_id), client.epochs(run_id)):
        say(line)
    return run


def closing_lines(run: Run, verdict: StoredVerdict | None, epochs: list[Row[Any]]) -> list[str]:
    """Return how a run ended, and why."""
    if run.state != RunState.DONE:
        return [f"training run {run.id} is {run.state}" + (f": {run.error}" if run.error else "")]
    accuracy = describe_accuracy(run.accuracy, run.dataset, run.dataset_version)
    made = f"model {run.model_id}, accuracy {accuracy}"
    lines = [line] if (line := end_line(run, epochs)) else []
    lines.append(made if run.model_id else "its model was removed")
    lines += [f"  {'yes' if check['passed'] else 'NO '}  {check['text']}" for check in _checks(verdict)]
    return [*lines, run.verdict or ""]


def data_line(run: Run) -> str:
    """Return what a run trains on, and what was chosen for it, in one line.

    Its data must be known already.
    """
    data = run.data or {}
    line = (
        f"{pluralize(data['train_images'], 'training image')} from {run.data_source}, "
        f"{data['validation_images']:,} held out, {data['evaluation_images']:,} to evaluate"
    )
    live = data["live_images"]
    if data["corrections"] or live or data["left_out"]:
        line += (
            f"; {pluralize(data['corrections'], 'correction')} included, {live:,} in the live set, "
            f"{data['left_out']:,} skipped"
        )
    if done := data.get("resumed_epochs"):
        line += f"; resumes an interrupted run after epoch {done}"
    is_chosen = run.recipe.get("augment") or run.recipe.get("backbone")
    return f"{line}; {_choice(run.recipe, data['input'])}" if is_chosen else line


def _choice(recipe: dict[str, Any], spec: dict[str, Any]) -> str:
    """Return what was chosen from the data: a run's recipe, and the input of its model."""
    colours = "grey" if spec["mode"] == "L" else "colour"
    images = f"{colours} images of {spec['width']}x{spec['height']} pixels"
    if recipe.get("backbone"):
        return f"a head on backbone {recipe['backbone']} for {images}"
    minutes = recipe.get("max_minutes")
    limit = f", at most {minutes:g} {'minute' if minutes == 1 else 'minutes'}" if minutes else ""
    return (
        f"{recipe['architecture']} for {images}, augmentation {recipe['augment']}, "
        f"up to {recipe['epochs']} epochs in batches of {recipe['batch_size']}{limit}"
    )


def _say_data(client: Client, run: Run) -> None:
    """Print what a run trains on, and what would help if it learns pictures in colour from nothing."""
    say(data_line(run))
    is_colour = (run.data or {})["input"]["mode"] == "RGB"
    if is_colour and run.recipe["architecture"] == "cnn" and not client.backbones():
        say(f"On a pretrained network, photographs are learnt better and sooner: {ADD_BACKBONE}.")


def epoch_line(epoch: Row[Any], epochs: int) -> str:
    """Return an epoch's figures in one line."""
    return (
        f"epoch {epoch.epoch} of {epochs}: accuracy {epoch.accuracy:.4f}, "
        f"held-out accuracy {epoch.val_accuracy:.4f}, {epoch.seconds:.1f} s"
    )


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
    if run.epochs_done == epochs:
        return "evaluating"
    left = (run.expected_at - datetime.now(UTC)).total_seconds() if run.expected_at else 0.0
    end = f", ends within {format_duration(left)}" if left > 0 else ""
    return f"epoch {run.epochs_done + 1} of {epochs}{end}"


def _is_overdue(run: Run) -> bool:
    """Return whether a trainer would have claimed the run by now."""
    if run.state != RunState.PENDING:
        return False
    return (datetime.now(UTC) - run.requested_at).total_seconds() >= _NO_TRAINER_SECONDS
