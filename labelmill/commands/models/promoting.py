"""`labelmill models promote`, `rollback`, `pin` and `history`: which model is the champion."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Final

import typer

from jobs.models.dataset import MNIST
from labelmill.client import Client
from labelmill.commands.options import AsJson, AsJsonList, DatasetOption
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import (
    ExitCode,
    examples,
    fail,
    print_data,
    print_json,
    print_value,
    report_errors,
    say,
)

if TYPE_CHECKING:
    from jobs.ledger.learning.gate import Verdict

app = typer.Typer(add_completion=False)

_COLUMNS: Final = (
    Column("champion since (UTC)", lambda move: short_time(move.created_at)),
    Column("model", attrgetter("model_id")),
    Column("before", lambda move: move.previous_id or "-"),
    Column("how", lambda move: f"{move.how}, by force" if move.forced else move.how),
)


@app.command(
    epilog=examples(
        "labelmill models promote 06h0w4r0rf0dkckt", "labelmill models promote 06h0w4r0rf0dkckt --force"
    )
)
@report_errors
def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    force: Annotated[bool, typer.Option("--force", help="Overrule the gate; this is recorded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make an evaluated model its dataset's champion if it passes the gate.

    New jobs use it; running jobs keep their model; no worker restarts. The gate compares its recorded
    evaluation with the champion's on the same images. If it is refused, the exit code is 3. If there is no
    champion, an evaluated model need not pass. --force promotes any model, evaluated or not; this is
    recorded.
    """
    with Client() as client:
        model = client.model(model).id
        verdict = client.promote(model, force=force)
    if as_json:
        print_json({"model": model, **asdict(verdict)})
    print_checks(verdict)
    if not verdict.promote:
        fail(f"model {model} is {verdict.reason}", ExitCode.WITH_ERRORS)
    say(f"model {model} is {verdict.reason}")
    if not as_json:
        print_data(model)


@app.command(epilog=examples("labelmill models rollback", "labelmill models rollback --dataset birds"))
@report_errors
def rollback(
    dataset: DatasetOption = MNIST,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again, without the gate. Run it twice to go back two champions.

    Like `promote`, it first checks the model's file in the store.
    """
    with Client() as client:
        move = client.rollback(dataset=dataset)
    say(f"model {move.model_id} is the champion again, instead of {move.previous_id}")
    print_value(move, move.model_id, as_json=as_json)


@app.command(epilog=examples("labelmill models pin --dataset birds", "labelmill models pin --off"))
@report_errors
def pin(
    dataset: DatasetOption = MNIST,
    off: Annotated[bool, typer.Option("--off", help="Release the champion.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pin the champion: no training run replaces it, even with `retrain --force`, until it is released.

    Until then, `promote` needs --force, and `rollback` is refused. A new champion is not pinned.
    """
    with Client() as client:
        champion = client.unpin(dataset=dataset) if off else client.pin(dataset=dataset)
    if off:
        say(f"the champion {champion.id} is not pinned: training runs can replace it")
    else:
        say(f"the champion {champion.id} is pinned: no training run replaces it")
    print_value({"model": champion.id, "pinned_at": champion.pinned_at}, champion.id, as_json=as_json)


@app.command(epilog=examples("labelmill models history", "labelmill models history --json"))
@report_errors
def history(
    dataset: DatasetOption = MNIST,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    as_json: AsJsonList = False,
) -> None:
    """List the promotions, latest first: which model became the champion, when, how, and instead of which."""
    with Client() as client:
        moves = client.promotions(dataset=dataset, limit=limit)
    print_rows(_COLUMNS, moves, as_json=as_json)


def print_checks(verdict: Verdict) -> None:
    """Print the gate's checks, one per line."""
    for check in verdict.checks:
        say(f"  {'passed' if check.passed else 'FAILED'}  {check.name + ':':<14}{check.text}")
