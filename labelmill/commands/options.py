"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.limits import MAX_TOP_K
from worker.learning.recipes import MAX_SIZE, MIN_SIZE

#: For commands that print one thing, and for those that list.
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]
AsJsonList = Annotated[bool, typer.Option("--json", help="Print a JSON list.")]

#: The dataset whose champion or challenger a command is about.
DatasetOption = Annotated[str, typer.Option("--dataset", metavar="NAME", help="The dataset.")]

#: The same for commands that also take a model, which then must belong to the dataset.
ChampionOfOption = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="Use this dataset's champion. Left out: mnist."),
]

#: The same for commands that need a model, which may be named by an alias.
AliasOfOption = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="The dataset of the alias. Left out: mnist."),
]

#: How many of the most probable classes a job's predictions keep.
TopOption = Annotated[
    int | None,
    typer.Option(
        "--top",
        min=1,
        max=MAX_TOP_K,
        metavar="K",
        help=f"Also keep the K most probable classes of each image, 1 to {MAX_TOP_K}.",
    ),
]

# ---- how a model is trained -----------------------------------------------------------------------------

TrainedOn = Annotated[
    str, typer.Option("--dataset", metavar="NAME", help="The dataset; its latest version is used.")
]

ArchitectureOption = Annotated[
    Literal["mlp", "cnn", "finetune"] | None,
    typer.Option(
        "--architecture",
        help="The network. Left out: cnn; for mnist, LABELMILL_RETRAIN_ARCHITECTURE.",
    ),
]

StartOption = Annotated[
    str | None,
    typer.Option("--from", metavar="MODEL", help="The model to fine-tune. Left out: the dataset's champion."),
]

ProfileOption = Annotated[
    Literal["quick", "long"] | None,
    typer.Option("--profile", help="How long mnist's recipes train. Left out: LABELMILL_RETRAIN_PROFILE."),
]

SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=MIN_SIZE,
        max=MAX_SIZE,
        help="Scale images to this width and height in pixels. Left out: chosen from the data.",
    ),
]

AugmentOption = Annotated[
    Literal["digits", "photos", "none"] | None,
    typer.Option(
        "--augment",
        help="How images are varied: photos are mirrored, digits are not. Left out: digits if all are grey.",
    ),
]

MaxMinutesOption = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        metavar="MINUTES",
        help="Train for at most this time; decoding and evaluation are not included.",
    ),
]
