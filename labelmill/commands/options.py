"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

#: The dataset whose champion or challenger a command is about.
DatasetOption = Annotated[str, typer.Option("--dataset", metavar="NAME", help="The dataset.")]

#: The same for commands that also take a model, which then must belong to the dataset.
ChampionOfOption = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="The dataset whose champion it is. Left out: mnist."),
]
