"""The demo, top to bottom: data, model, PNG files, stack, job, results."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from jobs.files import private_umask
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import JobStatus
from jobs.ledger.learning.models import find_evaluation
from jobs.models.evaluation import Evaluation
from jobs.models.model import Model
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.commands.follow_job import watch
from labelmill.console.drawing import Picture, draw
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import Console, exit_code_of, next_steps, say
from labelmill.local.stack import Stack, broker_answers
from labelmill.local.training import load_mnist, train_with_progress
from producer.export import printable
from worker.learning.recipes import recipe_for

if TYPE_CHECKING:
    from worker.learning.mnist import Mnist

#: How many correct images are drawn, and how many of the most confident mistakes.
DRAWN: Final = 4

#: Characters that a class's name can have, but a folder's name should not.
_NOT_IN_PATHS: Final = re.compile(r"[^\w-]+")

#: A folder's name has at most this many characters of its class's name: few enough for any file system.
_NAME_LENGTH: Final = 40


def run_demo(settings: Settings) -> None:
    """Run the demo, and exit as `labelmill submit --watch` does. Ctrl-C ends it and everything it started."""
    _stack_unless_up(settings)  # fail now, not after a download and a training
    data = load_mnist(settings, allow_sample=True)
    with Client(settings) as client:
        model = _find_or_train_model(data, settings, client)
        folder = _write_images(data, settings.home / "demo" / _data_name(data))
        with _stack_unless_up(settings) as stack:
            say("starting the workers" if stack else f"using the stack that is up in {settings.home}")
            with ProgressLine("submitting") as progress:
                submitted = client.submission(
                    client.sources([folder]), model=model.id, on_progress=progress.update
                )
            status = watch(client, submitted.job_id, own_stack=stack)
        show_results(client, status, data, Console(highlight=False))
    raise SystemExit(exit_code_of(status))


def _stack_unless_up(settings: Settings) -> Stack | nullcontext[None]:
    """Return a stack to start, or nothing if one is up. Raises UserError, SettingsError if none can start."""
    if settings.embedded_broker and broker_answers(settings):
        return nullcontext()
    return Stack(settings)


def _find_or_train_model(data: Mnist, settings: Settings, client: Client) -> Model:
    """Return the champion if it was trained on the same data, else a model that is trained now."""
    for model in client.models():
        if "champion" in model.aliases and (evaluated := _evaluated_on(data, model, client)):
            say(f"using the champion {model.id}, test accuracy {evaluated.accuracy:.4f}")
            return model
    say(f"training on {len(data.train_images):,} images")
    trained = train_with_progress(settings, recipe_for("mlp", "quick", seed=1), data, replace=True)
    say(trained.reason)
    if "champion" not in trained.model.aliases:
        say(f"the demo uses model {trained.model.id} anyway")
    return trained.model


def _evaluated_on(data: Mnist, model: Model, client: Client) -> Evaluation | None:
    """Return the model's evaluation on these test images, or None if it was trained on other data.

    The source alone cannot tell: it is "folder" for all files but MNIST's. Nor can the training images:
    corrections are added to them.
    """
    if model.metrics.get("data") != data.source or model.classes != data.classes:
        return None
    with client.ledger.reading() as connection:
        found = find_evaluation(connection, model.id, data.evaluation_fingerprint)
    return found.evaluation if found else None


def _data_name(data: Mnist) -> str:
    """Return a name that is unique to these test images and their classes."""
    known_by = "\n".join((data.evaluation_fingerprint, *data.classes))
    return f"{data.source}-{hashlib.sha256(known_by.encode()).hexdigest()[:12]}"


def _class_folder(label: int, name: str) -> str:
    """Return a class's folder: its number, which identifies it, and a readable part of its name."""
    return str(label) if name == str(label) else f"{label}-{_NOT_IN_PATHS.sub('_', name)[:_NAME_LENGTH]}"


def _write_images(data: Mnist, folder: Path) -> Path:
    """Write the test images as PNG files, in a folder for each class. Return the folder of all."""
    from PIL import Image

    done = folder.with_suffix(".complete")
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with private_umask(), ProgressLine("writing PNG files", total=len(data.test_images)) as progress:
        folders = [folder / _class_folder(label, name) for label, name in enumerate(data.classes)]
        for each in folders:
            each.mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(data.test_images, data.test_labels, strict=True)):
            Image.fromarray(pixels).save(folders[label] / f"{number:05}.png")
            progress.update(number + 1)
        done.touch()
    return folder


def show_results(client: Client, status: JobStatus, data: Mnist, console: Console) -> None:
    """Print a table by class, a few images, and the commands to try next."""
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    good: list[Prediction] = []
    wrong: list[Prediction] = []
    for prediction in client.predictions(status.id):
        label = _truth(prediction, data.classes)
        total[label] += 1
        if prediction.label == label:
            right[label] += 1
            if right[label] == 1:
                good.append(prediction)
        else:
            wrong.append(prediction)
    if not total:  # the job was stopped before it had a result, and `watch` has said so
        return
    wrong.sort(key=lambda prediction: prediction.confidence or 0.0, reverse=True)

    console.print(f"\njob {status.id}, model {status.model}")
    table = Table()
    for heading in ("class", "images", "right", "accuracy"):
        table.add_column(heading, justify="right")
    for label in filter(total.__contains__, data.classes):
        table.add_row(
            Text(printable(label)),
            f"{total[label]:,}",
            f"{right[label]:,}",
            f"{right[label] / total[label]:.4f}",
        )
    table.add_section()
    everything, all_right = total.total(), right.total()
    table.add_row("all", f"{everything:,}", f"{all_right:,}", f"{all_right / everything:.4f}")
    console.print(table)
    if data.source == "mnist-sample":
        console.print(
            "MNIST could not be downloaded, so these are the held-out digits of a sample of 5,000.\n"
            "To use all of MNIST, set LABELMILL_MNIST_DIR to a folder with its four IDX files."
        )

    console.print("Some correct predictions, and the most confident mistakes:")
    shown = good[::3][:DRAWN] + wrong[:DRAWN]
    draw([_picture(prediction, _truth(prediction, data.classes)) for prediction in shown], console)
    steps = next_steps(
        (f"predictions {status.id} --below 0.6", "images it was unsure of"),
        ("up", "keep the workers running"),
        ("submit FOLDER --watch", "classify your own digits"),
        ("classify IMAGE", "classify one image"),
        ("datasets add NAME FOLDER", "begin with images of your own: one subfolder per class"),
    )
    console.print(
        f"\n{all_right:,} of {everything:,} right: accuracy {all_right / everything:.4f}\n\n"
        f"What to type next:\n{steps}",
        markup=False,  # a folder may be called [red]
        soft_wrap=True,
    )


def _picture(prediction: Prediction, truth: str) -> Picture:
    outcome = f"{prediction.label} {prediction.confidence:.2f}" if prediction.label else str(prediction.error)
    good = prediction.label == truth
    return Picture(Path(prediction.name).read_bytes(), outcome if good else f"{outcome}, is {truth}", good)


def _truth(prediction: Prediction, classes: Sequence[str]) -> str:
    """Return the class whose folder the image is in."""
    number, _, _ = Path(prediction.name).parent.name.partition("-")
    return classes[int(number)]
