"""`python -m benchmarks.side_by_side`: Labelmill and other ways, taking turns.

The package's docstring describes each way and its setup. The project does not depend on the other ways: make
an environment for them, python3.11 -m venv FOLDER, with pip install -r requirements/dev.txt and then
pip install 'ray[data]' daft celery-batches, and name it: --python FOLDER/bin/python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.check import compare_labels
from benchmarks.harness.images import ALL_DIGITS, ALL_IMAGES, Pictures
from benchmarks.harness.known_networks import compile_champion, known_network
from benchmarks.harness.report import RESULTS, print_spreads, rounded, spread, write_result
from benchmarks.harness.setup import Json, Setup, WorkDir, kept_folder, kept_images, prepare, run
from benchmarks.side_by_side.ways import WAYS, Turn, bare_loop, labelmill, other
from labelmill.console.terminal import say

#: Images of the job that makes our workers warm: several chunks for each of them.
FIRST_DIGITS: Final = 10_000
FIRST_PHOTOGRAPHS: Final = 200

#: A photograph takes several hundred times as long as a digit.
PHOTOGRAPHS: Final = 1_000

#: Takes a setup and the number of its images.
Taker = Callable[[Setup, int], Turn]


def main(
    python: Annotated[
        Path,
        typer.Option(
            exists=True, help="The Python of an environment that has the other ways' packages, too."
        ),
    ],
    rounds: Annotated[int, typer.Option(min=1, help="How many turns each way has.")] = 5,
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many images; slow ways get fewer. Default: 70,000 digits or 1,000 photographs."
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="A name in keras.applications, to classify photographs.")
    ] = None,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure images per second from files to rows in PostgreSQL, of Labelmill and of other ways."""
    pictures = Pictures.PHOTOGRAPHS if network else Pictures.DIGITS
    count = images or (PHOTOGRAPHS if network else ALL_DIGITS)
    if count > ALL_IMAGES[pictures]:
        raise typer.BadParameter(f"There are {ALL_IMAGES[pictures]:,} images.", param_hint="--images")
    first_folder = kept_images(work_dir, FIRST_PHOTOGRAPHS if network else FIRST_DIGITS, pictures)
    ours: Taker = partial(labelmill, first_folder=first_folder)
    ways: dict[str, tuple[int, Taker]] = {"Labelmill": (count, ours)}
    if network is None:
        ways["bare loop"] = count, bare_loop
    for way in WAYS:
        if network is None or way.photographs:
            ways[way.name] = min(count, way.images or count), partial(other, way=way, python=python)

    def take_turn(count: int, taker: Taker) -> Turn:
        with prepare(work_dir, images=count, pictures=pictures) as setup:
            if network:
                model = known_network(network, setup.folder, kept_folder(work_dir))
                setup = replace(setup, model=model)
                if taker is ours:
                    compile_champion(setup)
            return taker(setup, count)

    say("labelling by Labelmill; the others' labels are compared with these")
    labels = {count: take_turn(count, ours).labels for count in {count for count, _ in ways.values()}}
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        # Each round begins with another way.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            count, taker = ways[name]
            turn = take_turn(count, taker)
            compare_labels(labels[count], turn.labels, whose=name)
            turns[name].append(turn)
            say(
                f"round {number + 1} of {rounds}: {name}: {count / turn.work:,.0f} images/s, "
                f"start {turn.start:.1f} s"
            )
    figures = [_figures(name, ways[name][0], taken) for name, taken in turns.items()]
    speeds = {
        f"{name}, images/s": [ways[name][0] / turn.work for turn in taken] for name, taken in turns.items()
    }
    print_spreads("files to PostgreSQL rows", speeds)
    print_spreads("start, s", {name: [turn.start for turn in taken] for name, taken in turns.items()})
    packages = next(turn.packages for taken in turns.values() for turn in taken if turn.packages)
    measured = {
        "work": "side-by-side",
        "network": network,
        "ways": figures,
        "packages_of_other_ways": packages,
    }
    write_result(f"side-by-side-{network}" if network else "side-by-side", measured, json)


def _figures(name: str, images: int, turns: list[Turn]) -> dict[str, Any]:
    return {
        "name": name,
        "images": images,
        "images_per_second": rounded(spread([images / turn.work for turn in turns]), 1),
        "start_seconds": rounded(spread([turn.start for turn in turns]), 1),
        "turns": [{"start": turn.start, "work": turn.work} for turn in turns],
    }


if __name__ == "__main__":
    run(main)
