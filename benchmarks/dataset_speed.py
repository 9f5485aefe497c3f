"""Measure how fast a dataset is added, and how soon a second training on it begins.

    python -m benchmarks.dataset_speed adding       # beside submitting the same 70,000 PNG files, in turns
    python -m benchmarks.dataset_speed starting     # 200,000 colour images of 64x64 pixels

Each command, and each training, is a process of its own, and its start counts.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import numpy as np
import typer
from PIL import Image

from benchmarks.images import ALL_DIGITS, Pictures, make_images
from benchmarks.model import make_champion, train_once
from benchmarks.processes import peak_kib
from benchmarks.report import write_measured
from benchmarks.setup import RESULTS, drop_developer_settings, kept_folder, short_folder
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.client.migrating import open_ledger
from labelmill.console.terminal import report_errors, say
from labelmill.local.stack import Stack

#: The dataset of `starting`, and the number of its classes.
_COLOURS: Final = "colours"
_CLASSES: Final = 10

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
@report_errors
def adding(rounds: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 7) -> None:
    """Submit 70,000 PNG files, and add them as a dataset, in turns."""
    load_average = os.getloadavg()[0]
    kept = kept_folder(None)
    folder = make_images(Pictures.DIGITS, ALL_DIGITS, Settings.load(), kept)
    drop_developer_settings()
    model = train_once(kept)
    turns = []
    with short_folder() as home:
        settings = _settings(home)
        with Stack(settings, worker=False), Client(settings) as client:
            make_champion(model, client.ledger, settings)
            for number in range(rounds):
                submitted = _seconds(settings, "submit", folder)
                added = _seconds(settings, "datasets", "add", f"digits-{number}", folder)
                turns.append({"submit_s": submitted, "add_s": added, "share": submitted / added})
                say(f"submitted in {submitted:.2f} s, added in {added:.2f} s: {submitted / added:.2f}")
    share = median(turn["share"] for turn in turns)
    say(f"adding is {share:.2f} times as fast as submitting")
    path = write_measured("dataset-adding", {"share": share, "turns": turns}, RESULTS, load_average)
    say(f"written to {path}")


@app.command()
@report_errors
def starting(
    images: Annotated[int, typer.Option(min=100, help="How many colour images.")] = 200_000,
    rounds: Annotated[int, typer.Option(min=1, help="Trainings after the first.")] = 5,
) -> None:
    """Time trainings from their start until they have their data, and until their first step."""
    load_average = os.getloadavg()[0]
    drop_developer_settings()
    with short_folder() as home:
        settings = _settings(home)
        say(f"writing {images:,} images")
        folder = _paint(home / "colours", images)
        measured: dict[str, Any] = {
            "images": images,
            "add_s": _seconds(settings, "datasets", "add", _COLOURS, folder),
        }
        say(f"added in {measured['add_s']:.1f} s")
        starts = [_first_step(settings) for _ in range(1 + rounds)]
    measured["first"], measured["others"] = starts[0], starts[1:]
    for name in ("data_s", "step_s"):
        measured[name] = median(each[name] for each in starts[1:])
    path = write_measured("dataset-starting", measured, RESULTS, load_average)
    say(f"a second training has its data after {measured['data_s']:.1f} s\nwritten to {path}")


def _settings(home: Path) -> Settings:
    settings = Settings.load(home=home / "home", ledger_url=None, store_url=None, broker_url=None)
    open_ledger(settings).close()
    return settings


def _command(settings: Settings, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "labelmill", *map(str, arguments)],
        env=os.environ | settings.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _seconds(settings: Settings, *arguments: str | Path) -> float:
    os.sync()
    began = time.perf_counter()
    process = _command(settings, *arguments)
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said)
    return time.perf_counter() - began


def _first_step(settings: Settings) -> dict[str, float]:
    """Train in a new process until its first step; return the seconds, and the peak of memory in MiB."""
    context = multiprocessing.get_context("spawn")
    times = context.SimpleQueue()
    began = time.perf_counter()  # all processes of a Linux machine share this clock
    process = context.Process(target=_train, args=(settings, times))
    process.start()
    ready, stepped, peak = times.get()
    process.join()
    found = {"data_s": ready - began, "step_s": stepped - began, "peak_mib": peak / 1024}
    say(", ".join(f"{name} {value:,.1f}" for name, value in found.items()))
    return found


class _Stopped(Exception):
    """The first step was taken."""


def _train(settings: Settings, times: Any) -> None:
    from worker.learning.recipes import TrainingRequest
    from worker.learning.retrain import begin_run, retrain

    ready: list[float] = []

    def stop(*_: object) -> None:
        times.put((ready[0], time.perf_counter(), peak_kib(os.getpid())))
        raise _Stopped

    with Client(settings) as client:
        recipe = client.recipe_of(TrainingRequest(dataset=_COLOURS, architecture="cnn", seed=1))
    with suppress(_Stopped):
        retrain(
            settings,
            begin_run(settings, recipe, dataset=_COLOURS),
            on_data=lambda *_: ready.append(time.perf_counter()),
            on_batch=stop,
        )


def _paint(folder: Path, images: int) -> Path:
    """Write PNG files of 64x64 pixels: a square of the class's colour at a random place."""
    dice = np.random.default_rng(1)
    colours = dice.integers(0, 256, (_CLASSES, 3), np.uint8)
    for label in range(_CLASSES):
        (folder / f"colour-{label}").mkdir(parents=True)
    for number in range(images):
        label = number % _CLASSES
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[::8, ::8] = dice.integers(0, 256, (8, 8, 3), np.uint8)  # so that no two images are equal
        top, left = dice.integers(0, 32, 2)
        pixels[top : top + 32, left : left + 32] = colours[label]
        Image.fromarray(pixels).save(folder / f"colour-{label}" / f"{number:06}.png", compress_level=1)
    return folder


if __name__ == "__main__":
    app()
