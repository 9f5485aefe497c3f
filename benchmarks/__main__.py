"""`make bench`: images a second from PNG files to committed rows, the pipeline beside a bare loop.

The two take turns; the pair's ratio is the pipeline's efficiency. docs/performance.md tells the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

from benchmarks.bare_loop import BareLoop, plans
from benchmarks.check import check_rows
from benchmarks.databases import Work, databases
from benchmarks.images import ALL_IMAGES, make_images
from benchmarks.model import TrainedModel, make_champion, train_once
from benchmarks.pipeline import Pipeline
from benchmarks.report import Result, Round, print_result, print_stages, write_result
from benchmarks.stages import PROFILE_IMAGES, profile_stages
from jobs.ledger import Ledger
from jobs.settings import ENV_PREFIX, Settings
from labelmill.console import say, tells_errors

RESULTS: Final = Path(__file__).parent / "results"
ROUNDS: Final = 5
PROCESSES: Final = 2

#: What of a developer's environment may reach the benchmark; a broker or ledger of theirs must not.
_SETTINGS_HEEDED: Final = frozenset(ENV_PREFIX + name for name in ("MNIST_DIR", "CHUNK_IMAGES"))


class Choice(StrEnum):
    """Which works are measured."""

    POSTGRESQL = Work.POSTGRESQL.value
    SQLITE = Work.SQLITE.value
    ALL = "all"


@tells_errors
def main(
    work: Annotated[Choice, typer.Option(help="Which database the rows go to.")] = Choice.ALL,
    rounds: Annotated[int, typer.Option(min=1, help="How many pairs count; one more comes first.")] = ROUNDS,
    images: Annotated[int, typer.Option(min=1, max=ALL_IMAGES, help="How many images.")] = ALL_IMAGES,
    processes: Annotated[int, typer.Option(min=1, help="Worker processes, on either side.")] = PROCESSES,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where images and model are kept between runs.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(help="The folder for <work>.json. Left out: benchmarks/results, for full runs only."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure the stages one by one instead, in one process.")
    ] = False,
) -> None:
    """Measure images a second from PNG files on disk to committed rows, beside a bare loop."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        if name not in _SETTINGS_HEEDED:
            del os.environ[name]
    signal.signal(signal.SIGTERM, _interrupt)
    load_average = os.getloadavg()[0]
    console = Console(highlight=False)
    kept = _kept_folder(work_dir)
    model = train_once(kept)
    folder = make_images(PROFILE_IMAGES if profile else images, Settings.load(home=kept / "model"), kept)
    for one in Work if work == Choice.ALL else [Work(work.value)]:
        if profile:
            say(f"profiling on {one}")
            print_stages(_profile(one, model, folder, processes), processes, console)
            continue
        result = _measure(one, model, folder, images=images, rounds=rounds, processes=processes)
        print_result(result, console)
        if json is None and (images < ALL_IMAGES or rounds < ROUNDS):
            say(f"not written down: that takes all images and {ROUNDS} rounds, or --json")
        else:
            say(f"written to {write_result(result, json or RESULTS, load_average)}")


def _measure(
    work: Work, model: TrainedModel, folder: Path, *, images: int, rounds: int, processes: int
) -> Result:
    with _short_folder() as home, databases(work, home) as both:
        settings = _settings(home, both.pipeline, processes)
        with Pipeline(settings, model) as pipeline, BareLoop(plans(both.bare_loop, model, processes)) as bare_loop:
            say(f"{work}: warming up")
            pipeline.warm_up(folder)
            measured: list[Round] = []
            # The first pair is not counted: it finds caches cold that later ones find warm.
            for number in range(rounds + 1):
                _settle(both.settle)
                ours = pipeline.classify(folder)
                _settle(both.settle)
                theirs = bare_loop.classify(folder)
                check_rows((both.pipeline, ours.job_id), (both.bare_loop, theirs.job_id), images=images)
                one = Round(ours.seconds, ours.submit_seconds, theirs.seconds)
                say(
                    f"{work}: {f'round {number} of {rounds}' if number else 'not counted'}: "
                    f"pipeline {images / one.pipeline:,.0f} images/s, "
                    f"bare loop {images / one.bare_loop:,.0f}, efficiency {one.efficiency:.2f}"
                )
                if number:
                    measured.append(one)
    return Result(work, images, settings, both.facts, measured)


def _profile(work: Work, model: TrainedModel, folder: Path, processes: int) -> dict[str, float]:
    with _short_folder() as home, databases(work, home) as both:
        settings = _settings(home, both.pipeline, processes)
        with contextlib.closing(Ledger(settings.ledger)) as ledger:
            make_champion(model, ledger, settings)
        return profile_stages(settings, model, folder)


def _settings(home: Path, ledger_url: str, processes: int) -> Settings:
    return Settings.load(
        home=home / "home", ledger_url=ledger_url, broker_url=None, store_url=None, processes=processes
    )


def _settle(database: Callable[[], None]) -> None:
    """What one measurement has left for the disk is not the next one's to wait for."""
    database()
    os.sync()


def _kept_folder(work_dir: Path | None) -> Path:
    """Where images and model stay. In the temporary folder the name is known to all: it must be ours."""
    if work_dir is None:
        work_dir = Path(tempfile.gettempdir()) / f"labelmill-benchmarks-{os.getuid()}"
    work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if work_dir.stat().st_uid != os.getuid():
        raise typer.BadParameter(f"{work_dir} belongs to somebody else.")
    return work_dir.resolve()


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder for one run whose path has room for a Unix socket's name."""
    folder = Path(tempfile.mkdtemp(prefix="lm-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.argv[0] = "python -m benchmarks"
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
