"""The demo, top to bottom: data, model, PNG files, stack, job, results."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table

from jobs.files import private_umask
from jobs.ledger.progress import JobStatus, Prediction
from jobs.model import Model
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console import Console, command_name, exit_code_of, say
from labelmill.drawing import Picture, draw
from labelmill.progress import ProgressLine
from labelmill.stack import Stack, broker_answers
from labelmill.training import load_mnist, train_with_progress
from labelmill.watching import watch
from worker.learning.recipes import recipe_for

if TYPE_CHECKING:
    from worker.learning.mnist import Mnist

#: How many digits are drawn: some that are right, and the surest mistakes.
DRAWN: Final = 4


def run_demo(settings: Settings) -> None:
    """Runs the demo and exits as `labelmill submit --watch` would. Ctrl-C ends it and all it started."""
    data = load_mnist(settings, allow_sample=True)
    with Client(settings) as client:
        _a_model_of(data, settings, client)
        folder = _write_digits(data, settings.home / "demo" / data.source)
        running = settings.embedded_broker and broker_answers(settings)
        with nullcontext() if running else Stack(settings, logs=settings.home / "logs") as stack:
            say("starting the workers")
            with ProgressLine("submitting") as progress:
                submitted = client.submission(client.sources([folder]), on_progress=progress.update)
            status = watch(client, submitted.job_id, own_stack=stack)
        _show(client, status, Console(highlight=False), sample=data.source != "mnist")
    raise SystemExit(exit_code_of(status))


def _a_model_of(data: Mnist, settings: Settings, client: Client) -> Model:
    """The champion, if it learnt from the same data; else one that is trained now."""
    for model in client.models():
        if "champion" in model.aliases and model.metrics.get("data") == data.source:
            say(f"using the champion {model.id}, test accuracy {model.accuracy:.4f}")
            return model
    say(f"training on {len(data.train_images):,} images")
    trained = train_with_progress(settings, recipe_for("mlp", "quick", seed=1), data, replace=True)
    say(trained.reason)
    return trained.model


def _write_digits(data: Mnist, folder: Path) -> Path:
    """The test images as PNG files in ten folders named by label: what a person's own images look like."""
    from PIL import Image

    done = folder.with_suffix(".complete")
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with private_umask(), ProgressLine("writing PNG files", total=len(data.test_images)) as progress:
        for label in range(10):
            (folder / str(label)).mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(data.test_images, data.test_labels, strict=True)):
            Image.fromarray(pixels).save(folder / str(label) / f"{number:05}.png")
            progress.update(number + 1)
        done.touch()
    return folder


def _show(client: Client, status: JobStatus, console: Console, *, sample: bool) -> None:
    """A table by digit, a few digits drawn, and what to type next."""
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    good: list[Prediction] = []
    wrong: list[Prediction] = []
    for prediction in client.predictions(status.id):
        label = _truth(prediction)
        total[label] += 1
        if prediction.label == label:
            right[label] += 1
            if right[label] == 1:
                good.append(prediction)
        else:
            wrong.append(prediction)
    wrong.sort(key=lambda prediction: prediction.confidence or 0.0, reverse=True)

    console.print(f"\njob {status.id}, model {status.model}")
    table = Table()
    for heading in ("digit", "images", "right", "accuracy"):
        table.add_column(heading, justify="right")
    for label in sorted(total):
        table.add_row(label, f"{total[label]:,}", f"{right[label]:,}", f"{right[label] / total[label]:.4f}")
    table.add_section()
    everything, all_right = total.total(), right.total()
    table.add_row("all", f"{everything:,}", f"{all_right:,}", f"{all_right / everything:.4f}")
    console.print(table)
    if sample:
        console.print(
            "MNIST could not be had: this was the held-out part of a sample of 5,000 of its digits.\n"
            "Set LABELMILL_MNIST_DIR to a folder with the four IDX files to see all of it."
        )

    console.print("Some that are right, and the mistakes it was surest of:")
    draw([_picture(prediction) for prediction in (good[::3][:DRAWN] + wrong[:DRAWN])], console)
    me = command_name()
    console.print(
        f"\n{all_right:,} of {everything:,} right: accuracy {all_right / everything:.4f}\n\n"
        "What to type next:\n"
        f"  {me} predictions {status.id} --below 0.6    # what it was unsure of\n"
        f"  {me} up                                        # keep broker and workers running\n"
        f"  {me} submit FOLDER --watch                     # images of your own\n"
        f"  {me} classify IMAGE"
    )


def _picture(prediction: Prediction) -> Picture:
    truth = _truth(prediction)
    outcome = f"{prediction.label} {prediction.confidence:.2f}" if prediction.label else str(prediction.error)
    good = prediction.label == truth
    return Picture(Path(prediction.name).read_bytes(), outcome if good else f"{outcome}, is {truth}", good)


def _truth(prediction: Prediction) -> str:
    return Path(prediction.name).parent.name
