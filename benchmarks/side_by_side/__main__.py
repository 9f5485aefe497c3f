"""`python -m benchmarks.side_by_side`: Labelmill and other ways, taking turns.

The package's docstring describes each way and its setup.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.check import compare_labels
from benchmarks.images import ALL_IMAGES, Pictures, make_images
from benchmarks.model import train_once
from benchmarks.report import write_json
from benchmarks.setup import drop_developer_settings, kept_folder
from benchmarks.side_by_side.others import WAYS, Way
from benchmarks.side_by_side.summary import Summary, facts, print_summaries
from benchmarks.side_by_side.turns import Turn, TurnSetup, bare_loop, labelmill, turn_of
from jobs.settings import Settings
from labelmill.console.terminal import Console, report_errors, say

RESULTS: Final = Path(__file__).parents[1] / "results"
ROUNDS: Final = 5

#: Images of the job that makes our workers warm: several chunks for each of them.
FIRST_IMAGES: Final = 10_000

#: The project does not depend on the other ways.
_INSTALL: Final = (
    "Make a separate environment, python3.11 -m venv FOLDER, with pip install -r requirements/dev.txt and "
    "then pip install 'ray[data]' celery-batches, and name it: --python FOLDER/bin/python."
)

_PACKAGES: Final = (
    *("celery", "celery-batches", "keras", "kombu", "numpy", "pillow", "psycopg", "pyarrow", "ray", "redis"),
    "tensorflow",
)

Taker = tuple[str, int, Callable[[TurnSetup], Turn]]

#: Prints the versions of the packages that an interpreter has.
_VERSIONS: Final = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@report_errors
def main(
    python: Annotated[
        Path, typer.Option(help="The Python of the environment that has the other ways' packages.")
    ] = Path(sys.executable),
    rounds: Annotated[int, typer.Option(min=1, help="How many turns each way has.")] = ROUNDS,
    images: Annotated[
        int,
        typer.Option(min=1, max=ALL_IMAGES[Pictures.DIGITS], help="How many images; slow ways get fewer."),
    ] = ALL_IMAGES[Pictures.DIGITS],
    only: Annotated[
        list[str] | None, typer.Option(help="Only other ways with this in their name; may be given again.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes of each way.")] = 2,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where images and model are kept between runs.")
    ] = None,
    json_folder: Annotated[
        Path | None,
        typer.Option(
            "--json", help="The folder for side-by-side.json. Left out: benchmarks/results, for full runs."
        ),
    ] = None,
) -> None:
    """Measure images per second from PNG files to rows in PostgreSQL, of Labelmill and of other ways."""
    drop_developer_settings()
    load_average = os.getloadavg()[0]
    versions = _versions(python)
    ways = [way for way in WAYS if only is None or any(word in way.name for word in only)]
    installed = [way for way in ways if _is_installed(way, versions, python)]
    kept = kept_folder(work_dir)
    model = train_once(kept)
    settings = Settings.load(home=kept / "model")

    def setup(count: int) -> TurnSetup:
        first = make_images(Pictures.DIGITS, FIRST_IMAGES, settings, kept)
        return TurnSetup(model, processes, make_images(Pictures.DIGITS, count, settings, kept), count, first)

    setups = {
        count: setup(count) for count in {images, *(min(images, way.images or images) for way in installed)}
    }
    say("labelling by Labelmill; the others' labels are compared with these")
    labels = {count: labelmill(setup).labels for count, setup in setups.items()}
    takers: list[Taker] = [("Labelmill", images, labelmill), ("bare loop, the limit", images, bare_loop)]
    takers += [(way.name, min(images, way.images or images), turn_of(way, python)) for way in installed]
    summaries = [Summary(name, count) for name, count, _ in takers]
    for number in range(rounds):
        for place in range(len(takers)):
            # Each round begins with another way.
            which = (number + place) % len(takers)
            name, count, take_turn = takers[which]
            turn = take_turn(setups[count])
            compare_labels(labels[count], turn.labels, whose=name)
            summaries[which].add(turn)
            say(
                f"round {number + 1} of {rounds}: {name}: {count / turn.work:,.0f} images/s, "
                f"start {turn.start:.1f} s"
            )
    print_summaries(summaries, Console(highlight=False))
    everything = images == ALL_IMAGES[Pictures.DIGITS] and rounds >= ROUNDS and len(installed) == len(WAYS)
    if json_folder is None and not everything:
        say(f"not written to a file: pass --json, or take all images, {ROUNDS} rounds and all ways")
    else:
        path = (json_folder or RESULTS) / "side-by-side.json"
        say(f"written to {write_json(path, facts(summaries, versions), load_average)}")


def _versions(python: Path) -> dict[str, str]:
    """Return the versions of the other ways' packages that the interpreter has.

    Raises BadParameter if it is not a Python.
    """
    try:
        done = subprocess.run(
            [str(python), "-c", _VERSIONS, *_PACKAGES], stdout=subprocess.PIPE, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise typer.BadParameter(f"{python} is not a Python: {error}") from error
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _is_installed(way: Way, versions: dict[str, str], python: Path) -> bool:
    if way.package in versions:
        return True
    say(f"{way.name} is skipped: {python} has no {way.package}. {_INSTALL}")
    return False


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
