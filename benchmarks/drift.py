"""Measure whether the learning loop works: images change, people correct some, and a training run follows.

    python -m benchmarks.drift shift --kind rotated --corrections 1500
    python -m benchmarks.drift same                     # 20 repeats in which nothing has changed

Everything is real: the stack runs, changed MNIST test digits arrive as a job, some of them are corrected, and
`retrain` trains, judges and promotes. Other test digits, changed in the same way, show what was gained. If
nothing changes, the digits are training digits.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image, ImageFilter

from benchmarks.report import write_measured
from benchmarks.setup import RESULTS, drop_developer_settings, short_folder
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.client.migrating import open_ledger
from labelmill.console.terminal import report_errors, say
from labelmill.local.stack import Stack
from worker.learning import mnist

Kind = Literal["rotated", "blurred", "unchanged"]
Images = npt.NDArray[np.uint8]

#: Test digits that only measure; corrections come from the others.
HELD_BACK: Final = 3_000

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
@report_errors
def shift(
    kind: Annotated[Kind, typer.Option(help="How the digits change.")] = "rotated",
    corrections: Annotated[int, typer.Option(min=1, max=7_000)] = 1_500,
) -> None:
    """Change the digits, correct some, retrain once, and report what the champion has gained."""
    load_average = os.getloadavg()[0]
    data = _data()
    with _running(data, kind, corrections) as loop:
        before = loop.accuracy()
        say(f"before: {before:.4f} of the {HELD_BACK:,} other {kind} digits, MNIST {loop.mnist():.4f}")
        verdict = loop.retrain(seed=1)
        after = loop.accuracy()
        say(f"{verdict}\nafter: {after:.4f} of the others, MNIST {loop.mnist():.4f}")
        measured = {"before": before, "after": after, "mnist": loop.mnist(), "verdict": verdict}
        path = write_measured(f"drift-{kind}-{corrections}", measured, RESULTS, load_average)
        say(f"written to {path}")


@app.command()
@report_errors
def same(
    repeats: Annotated[int, typer.Option(min=1, help="Retrainings after the first.")] = 20,
    corrections: Annotated[int, typer.Option(min=1, max=7_000)] = 1_500,
) -> None:
    """Confirm unchanged digits, then retrain with other seeds; each promotion is a mistake."""
    load_average = os.getloadavg()[0]
    data = _data()
    with _running(data, "unchanged", corrections) as loop:
        rows = []
        for seed in range(repeats):
            champion = loop.client.model().id
            verdict = loop.retrain(seed=2_000 + seed)
            promoted = loop.client.model().id != champion
            live = (loop.client.runs(limit=1)[0].data or {})["live_images"]
            rows.append({"seed": 2_000 + seed, "live": live, "verdict": verdict, "promoted": promoted})
            say(f"{seed}: {verdict}")
    mistakes = sum(bool(row["promoted"]) for row in rows)
    say(f"{mistakes} of {repeats} promoted")
    measured = {"repeats": repeats, "promoted": mistakes, "runs": rows}
    path = write_measured("drift-same", measured, RESULTS, load_average)
    say(f"written to {path}")


@contextmanager
def _running(data: mnist.Mnist, kind: Kind, corrections: int) -> Iterator[_Loop]:
    """Start a stack, train a champion on MNIST, and correct some digits that have changed."""
    with short_folder() as home:
        settings = Settings.load(
            home=home / "home", ledger_url=None, store_url=None, broker_url=None, retrain_cron="never"
        )
        open_ledger(settings).close()
        with Stack(settings, trainer=True) as stack, Client(settings) as client:
            loop = _Loop(client, stack, data, kind)
            loop.retrain(seed=1_000)
            loop.correct(corrections)
            yield loop


class _Loop:
    """A champion, and digits that arrive as jobs: those that are corrected, and others."""

    def __init__(self, client: Client, stack: Stack, data: mnist.Mnist, kind: Kind) -> None:
        self.client, self._stack, self._kind = client, stack, kind
        self._images, self._labels = data.test_images, data.test_labels
        if kind == "unchanged":  # corrections of test images are left out, so there would be no live set
            self._images, self._labels = data.train_images, data.train_labels
        order = np.random.default_rng(1).permutation(len(self._labels))
        self._others, self._correctable = order[:HELD_BACK], order[HELD_BACK:]

    def correct(self, count: int) -> None:
        """Submit changed digits, and give each its true label."""
        chosen = self._correctable[:count]
        job = self._classify(chosen)
        lines = ["index,label", *(f"{place},{self._labels[at]}" for place, at in enumerate(chosen))]
        self.client.correct_from(lines, job_id=job)

    def retrain(self, *, seed: int) -> str:
        """Retrain, wait for the end, and return the verdict."""
        run_id = self.client.retrain(seed=seed)
        for _ in self.client.follow_run(run_id):
            self._stack.check_running()
        run = self.client.run(run_id)
        return run.verdict or str(run.error)

    def accuracy(self) -> float:
        """Return the champion's accuracy on the other changed digits, classified by the workers."""
        job = self._classify(self._others)
        truth = [str(label) for label in self._labels[self._others]]
        labels = [prediction.label for prediction in self.client.predictions(job)]
        return sum(label == true for label, true in zip(labels, truth, strict=True)) / len(truth)

    def mnist(self) -> float:
        """Return the champion's accuracy on MNIST's test set."""
        return self.client.model().accuracy or 0.0

    def _classify(self, chosen: npt.NDArray[np.int64]) -> str:
        change = _CHANGES[self._kind]
        job = self.client.submit(*(_png(change(self._images[at], int(at))) for at in chosen))
        self.client.wait(job)
        return job


def _rotated(pixels: Images, _number: int) -> Images:
    return np.asarray(Image.fromarray(pixels).rotate(35, Image.Resampling.BILINEAR))


def _blurred(pixels: Images, number: int) -> Images:
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    noise = np.random.default_rng(number).normal(0, 50, pixels.shape)
    return (blurred + noise).clip(0, 255).astype(np.uint8)


_CHANGES: Final[dict[str, Callable[[Images, int], Images]]] = {
    "rotated": _rotated,
    "blurred": _blurred,
    "unchanged": lambda pixels, _number: pixels,
}


def _png(pixels: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _data() -> mnist.Mnist:
    settings = Settings.load()
    data = mnist.load(settings.mnist_dir, settings.cache_dir, say=say)
    drop_developer_settings()
    return data


if __name__ == "__main__":
    app()
