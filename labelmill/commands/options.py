"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from worker.learning.recipes import MAX_SIZE, MIN_SIZE

#: The dataset whose champion or challenger a command is about.
DatasetOption = Annotated[str, typer.Option("--dataset", metavar="NAME", help="The dataset.")]

#: The same for commands that also take a model, which then must belong to the dataset.
ChampionOfOption = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="The dataset whose champion it is. Left out: mnist."),
]

#: The same for commands that need a model, which may be named by an alias.
AliasOfOption = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="The dataset of the alias. Left out: mnist."),
]

# ---- how a model is trained -----------------------------------------------------------------------------

TrainedOn = Annotated[str, typer.Option("--dataset", metavar="NAME", help="The dataset, its latest version.")]

ArchitectureOption = Annotated[
    Literal["mlp", "cnn", "finetune"] | None,
    typer.Option(
        "--architecture",
        help="The network. Left out: cnn; for mnist, LABELMILL_RETRAIN_ARCHITECTURE.",
    ),
]

StartOption = Annotated[
    str | None,
    typer.Option("--from", metavar="MODEL", help="Where finetune starts. Left out: the dataset's champion."),
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
        help="Width and height in pixels that images are scaled to. Left out: chosen from the data.",
    ),
]

AugmentOption = Annotated[
    Literal["digits", "photos", "none"] | None,
    typer.Option(
        "--augment",
        help="How images are varied: photos are mirrored, digits are not. Left out: photos for colours.",
    ),
]

MaxMinutesOption = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        metavar="MINUTES",
        help="The longest training; the best model of this time counts. The evaluation comes on top.",
    ),
]
