"""`labelmill models shadow`: compare a challenger with the champion on real jobs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from jobs.errors import UserError
from jobs.ledger.shadows import Comparison, Disagreement
from labelmill.client import Client
from labelmill.console import examples, print_data, print_json, say, tells_errors
from labelmill.tables import Column, print_table

app = typer.Typer(add_completion=False)

_COLUMNS: Final = (
    Column("job"),
    Column("index", right=True),
    Column("name", least=10),
    Column("champion", least=12),
    Column("challenger", least=12),
)


@app.command(
    epilog=examples(
        "labelmill models shadow 06h0w4r0rf0dkckt", "labelmill models shadow", "labelmill models shadow --off"
    )
)
@tells_errors
def shadow(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The challenger. Left out: show how it compares.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Stop the challenger.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most this many disagreements.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Let a challenger classify a share of the chunks as well, or show where it disagrees.

    Nobody gets its labels, and its errors never affect a job.
    """
    if off and model is not None:
        raise UserError("Give MODEL or --off, not both.")
    with Client() as client:
        if off:
            client.end_shadow()
            say("no model is in the shadow now")
            if as_json:
                print_json(None)
            return
        if model is not None:
            model = client.model(model).id
            client.begin_shadow(model)
            share = client.settings.shadow_share
            say(
                f"model {model} classifies {100 * share:.6g} % of the chunks from now on "
                "(LABELMILL_SHADOW_SHARE)"
            )
        comparison, disagreed = client.shadow(limit=limit)
    if as_json:
        print_json(
            asdict(comparison)
            | {"share": comparison.share, "first_disagreements": [asdict(each) for each in disagreed]}
        )
    else:
        _for_people(comparison, disagreed)


def _for_people(comparison: Comparison, disagreed: list[Disagreement]) -> None:
    share = "" if comparison.share is None else f", {100 * comparison.share:.2f} %"
    print_data(f"{'challenger':<16}{comparison.model}")
    print_data(f"{'champion':<16}{comparison.beside}")
    print_data(f"{'chunks':<16}{comparison.chunks:,}")
    print_data(f"{'images':<16}{comparison.images:,}")
    print_data(f"{'disagreements':<16}{comparison.disagreements:,}{share}")
    if not disagreed:
        return
    print_data("")
    print_table(
        _COLUMNS,
        [
            (
                each.job,
                f"{each.index}",
                each.name,
                f"{each.label or '-'} {each.confidence:.4f}",
                f"{each.challenger_label} {each.challenger_confidence:.4f}",
            )
            for each in disagreed
        ],
    )
