"""Measure the recipes' figures in docs/explanation/training.md: time, accuracy, and the effect of chance.

python -m benchmarks.training speed      # the quick recipe beside the plain one, in alternation
python -m benchmarks.training seeds      # the same recipe with other seeds, through the gate
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benchmarks.report import write_measured
from benchmarks.setup import RESULTS
from jobs.ledger.learning.models import CHAMPION
from jobs.models.model import MNIST_INPUT
from jobs.settings import Settings
from labelmill.client.migrating import open_ledger
from labelmill.console.terminal import report_errors, say
from worker.learning import mnist
from worker.learning.evaluation import evaluate
from worker.learning.recipes import PLAIN, Recipe, recipe_for
from worker.learning.retrain import begin_run, retrain
from worker.learning.training import train
from worker.predicting.classifier import Classifier, configure_threads

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
@report_errors
def speed(rounds: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 5) -> None:
    """Train with the plain and the quick recipe in turns, from data in memory to a trained model.

    Also time the whole command, `labelmill retrain --wait`, from nothing to a promoted champion.
    """
    load_average = os.getloadavg()[0]
    data = _data()
    _timed(data, replace(PLAIN, epochs=1), seed=0)  # not counted: TensorFlow's own start
    turns = []
    for seed in range(1, rounds + 1):
        turn = {
            "plain": _timed(data, PLAIN, seed=seed),
            "quick": _timed(data, recipe_for("mlp", "quick", seed=seed), seed=seed),
            "command": _commanded(seed=seed),
        }
        turns.append(turn)
        parts = (
            f"{name} {found['s']:.1f} s, accuracy {found['accuracy']:.4f}" for name, found in turn.items()
        )
        say(f"seed {seed}: {'; '.join(parts)}")
    shares = {}
    for name in ("quick", "command"):
        ratios = sorted(turn[name]["s"] / turn["plain"]["s"] for turn in turns)
        shares[name] = {"median": median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
        say(f"{name} over plain: median {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    measured = {"cores": os.cpu_count(), "turns": turns, "ratios": shares}
    path = write_measured("training-speed", measured, RESULTS, load_average)
    say(f"written to {path}")


@app.command()
@report_errors
def seeds(repeats: Annotated[int, typer.Option(min=1, help="Trainings after the first.")] = 20) -> None:
    """Retrain repeatedly with the quick recipe, each time with another seed; count the promotions."""
    logging.basicConfig(level=logging.WARNING)
    load_average = os.getloadavg()[0]
    data = _data()
    with tempfile.TemporaryDirectory(prefix="labelmill-seeds-") as home:
        settings = Settings.load(home=Path(home), ledger_url=None, store_url=None, broker_url=None)
        open_ledger(settings).close()
        rows = []
        for seed in range(repeats + 1):
            claim = begin_run(settings, recipe_for("mlp", "quick", seed=1000 + seed))
            done = retrain(settings, claim, data)
            rows.append({"seed": 1000 + seed, "accuracy": done.model.accuracy, "verdict": done.reason})
            rows[-1]["promoted"] = CHAMPION in done.model.aliases
            say(f"{seed}: accuracy {done.model.accuracy:.4f}, {done.reason}")
    promoted = sum(bool(row["promoted"]) for row in rows[1:])
    say(f"{promoted} of {repeats} promoted")
    measured = {"repeats": repeats, "promoted": promoted, "runs": rows}
    path = write_measured("training-seeds", measured, RESULTS, load_average)
    say(f"written to {path}")


def _data() -> mnist.Mnist:
    settings = Settings.load()
    configure_threads(1)
    return mnist.load(settings.mnist_dir, settings.cache_dir, say=say)


def _timed(data: mnist.Mnist, recipe: Recipe, *, seed: int) -> dict[str, float]:
    began = time.monotonic()
    prepared = data.prepared()
    model = train(prepared, replace(recipe, seed=seed))
    seconds = time.monotonic() - began
    classifier = Classifier(model, data.classes, MNIST_INPUT)
    found = evaluate(classifier, prepared.test).evaluation
    return {"s": seconds, "accuracy": found.accuracy}


def _commanded(*, seed: int) -> dict[str, float]:
    """Run the command as a user would, from an empty state folder."""
    with tempfile.TemporaryDirectory(prefix="lm-") as home:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "labelmill", "retrain", "--wait", "--json", "--seed", str(seed)],
            env=os.environ | {"LABELMILL_HOME": home},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return {"s": time.monotonic() - began, "accuracy": json.loads(done.stdout)["accuracy"]}


if __name__ == "__main__":
    app()
