"""`labelmill backbones`: list, add and remove pretrained networks to train on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from jobs.models.model import name_input
from labelmill.client import Client
from labelmill.commands.groups import listing_group
from labelmill.commands.options import AsJson, AsJsonList
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, print_value, report_errors, say

app = listing_group(
    "List the backbones, pretrained networks on which training builds classifiers; add or remove one.",
    "labelmill backbones",
    "labelmill backbones add efficientnetv2b0 --licence Apache-2.0",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The backbone's name.")]

_COLUMNS: Final = (
    Column("backbone", lambda each: each.name),
    Column("images", lambda each: name_input(each.input_spec)),
    Column("features", lambda each: f"{each.features:,}", right=True),
    Column("MB", lambda each: f"{each.size_bytes / 1e6:,.1f}", right=True, leave_out=1),
    Column("licence", lambda each: each.licence or "-", leave_out=2),
    Column("added (UTC)", lambda each: short_time(each.created_at), leave_out=3),
)


@app.command("list", epilog=examples("labelmill backbones list --json"))
@report_errors
def list_all(as_json: AsJsonList = False) -> None:
    """List the backbones, the latest first."""
    with Client() as client:
        found = client.backbones()
    print_rows(_COLUMNS, found, as_json=as_json)


@app.command(
    epilog=examples(
        "labelmill backbones add efficientnetv2b0 --licence Apache-2.0",
        "labelmill backbones add mobilenet.keras --name birds-mobilenet --licence MIT",
    )
)
@report_errors
def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A network of keras.applications, or a .keras file of one that was trained on many images.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name. Default: that of the network or file.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The licence of its weights, to show in lists.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a pretrained network, on which training runs build classifiers; prints its name.

    Keras downloads the weights of a network of keras.applications, once: they are kept in the object store. A
    network in a file must take numbers from 0 to 255 and scale them itself. Its last Dense layer is cut off,
    and what it returns for a few made-up images is checked. Needs TensorFlow.

    `retrain` then builds on it, for images in colour or larger than 64 pixels, unless you choose another
    architecture. If several are added, the latest counts, unless you choose one with --backbone.
    """
    with Client() as client:
        added = client.add_backbone(source, name=name, licence=licence)
    say(f"backbone {added.name}: {name_input(added.input_spec)} images, {added.features:,} features")
    say("  train on it:  labelmill retrain --dataset NAME --wait")
    print_value(asdict(added), added.name, as_json=as_json)


@app.command(epilog=examples("labelmill backbones remove efficientnetv2b0"))
@report_errors
def remove(name: Name) -> None:
    """Remove a backbone and the features it has computed. The models that were trained on it stay."""
    with Client() as client:
        client.remove_backbone(name)
    say(f"backbone {name} is removed")
