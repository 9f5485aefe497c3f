"""`python -m benchmarks.side_by_side`: Labelmill and other ways, taking turns.

The package's docstring describes each way and its setup. The project does not depend on the other ways: make
an environment for them, python3.11 -m venv FOLDER, with pip install -r requirements/dev.txt and then
pip install 'ray[data]' celery-batches, and name it: --python FOLDER/bin/python.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.check import compare_labels
from benchmarks.harness.images import ALL_DIGITS
from benchmarks.harness.report import RESULTS, print_spreads, rounded, spread, write_result
from benchmarks.harness.setup import Json, Setup, WorkDir, kept_images, prepare, run
from benchmarks.side_by_side.ways import WAYS, Turn, bare_loop, labelmill, other
from labelmill.console.terminal import say

#: Images of the job that makes our workers warm: several chunks for each of them.
FIRST_IMAGES: Final = 10_000

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
        int, typer.Option(min=1, max=ALL_DIGITS, help="How many images; slow ways get fewer.")
    ] = ALL_DIGITS,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure images per second from PNG files to rows in PostgreSQL, of Labelmill and of other ways."""
    first_folder = kept_images(work_dir, FIRST_IMAGES)
    ours: Taker = partial(labelmill, first_folder=first_folder)
    ways: dict[str, tuple[int, Taker]] = {"Labelmill": (images, ours), "bare loop": (images, bare_loop)}
    for way in WAYS:
        ways[way.name] = min(images, way.images or images), partial(other, way=way, python=python)

    def take_turn(count: int, taker: Taker) -> Turn:
        with prepare(work_dir, images=count) as setup:
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
    print_spreads("PNG files to PostgreSQL rows", speeds)
    print_spreads("start, s", {name: [turn.start for turn in taken] for name, taken in turns.items()})
    packages = turns[WAYS[0].name][0].packages
    measured = {"work": "side-by-side", "ways": figures, "packages_of_other_ways": packages}
    write_result("side-by-side", measured, json)


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
