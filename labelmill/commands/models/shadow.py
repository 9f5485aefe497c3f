"""`labelmill models shadow`: compare a challenger with the champion on real jobs."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from typing import Annotated, Final

import typer

from jobs.errors import UserError
from jobs.ledger.jobs.shadows import Comparison, Disagreement
from jobs.models.dataset import MNIST
from labelmill.client import Client
from labelmill.commands.options import AsJson
from labelmill.console.tables import Column, field_lines, print_table
from labelmill.console.terminal import examples, print_data, print_json, report_errors, say

app = typer.Typer(add_completion=False)

_COLUMNS: Final = (
    Column("job", attrgetter("job")),
    Column("index", lambda image: f"{image.index}", right=True),
    Column("name", attrgetter("name"), min_width=10),
    Column("champion", lambda image: f"{image.label or '-'} {image.confidence:.4f}", min_width=12),
    Column(
        "challenger",
        lambda image: f"{image.challenger_label} {image.challenger_confidence:.4f}",
        min_width=12,
    ),
)


@app.command(
    epilog=examples(
        "labelmill models shadow 06h0w4r0rf0dkckt", "labelmill models shadow", "labelmill models shadow --off"
    )
)
@report_errors
def shadow(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The challenger. Default: show how it compares.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The dataset. Default: that of MODEL, or mnist."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Stop the challenger.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most this many disagreements.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Let a challenger also classify a share of the chunks, or show where it disagrees with the champion.

    With MODEL, this model becomes the challenger of its dataset. Its labels are only compared, and its errors
    never affect a job. Each dataset can have one challenger. A promoted model is no longer a challenger.

    Without MODEL, the command shows how many chunks and images were compared, the share of disagreements, and
    the first of them. Results stay until their jobs are purged.
    """
    if off and model is not None:
        raise UserError("Give MODEL or --off, not both.")
    with Client() as client:
        if off:
            client.end_shadow(dataset=dataset or MNIST)
            say("the challenger is stopped")
            if as_json:
                print_json(None)
            return
        if model is not None:
            challenger = client.begin_shadow(client.model(model, dataset=dataset).id)
            dataset, share = challenger.dataset, client.settings.shadow_share
            say(
                f"model {challenger.id} is the challenger and also classifies {100 * share:.6g} % of the "
                f"chunks of new jobs of dataset {dataset} (LABELMILL_SHADOW_SHARE)"
            )
        comparison, disagreed = client.shadow(dataset=dataset or MNIST, limit=limit)
    if as_json:
        print_json(
            asdict(comparison)
            | {"share": comparison.share, "first_disagreements": [asdict(each) for each in disagreed]}
        )
    else:
        _print_comparison(comparison, disagreed)


def _print_comparison(comparison: Comparison, disagreed: list[Disagreement]) -> None:
    share = "" if comparison.share is None else f", {100 * comparison.share:.2f} %"
    lines = field_lines(
        ("challenger", comparison.model),
        ("champion", comparison.beside or ""),
        ("chunks", f"{comparison.chunks:,}"),
        ("images", f"{comparison.images:,}"),
        ("disagreements", f"{comparison.disagreements:,}{share}"),
    )
    print_data("\n".join(lines))
    if disagreed:
        print_data("")
        print_table(_COLUMNS, disagreed)
