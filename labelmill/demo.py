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

from jobs.evaluation import Evaluation
from jobs.files import private_umask
from jobs.ledger.evaluations import find_evaluation
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
from producer.export import printable
from worker.learning.recipes import recipe_for

if TYPE_CHECKING:
    from worker.learning.mnist import Mnist

#: How many images are drawn: some that are right, and the surest mistakes.
DRAWN: Final = 4

#: What a class's name may have and a folder's had better not: it is a name a line, of any characters.
_NOT_IN_PATHS: Final = re.compile(r"[^\w-]+")

#: Characters of a class's name that its folder has: with four bytes each they are within any limit.
_NAME_LENGTH: Final = 40


def run_demo(settings: Settings) -> None:
    """Runs the demo and exits as `labelmill submit --watch` would. Ctrl-C ends it and all it started."""
    _stack_unless_up(settings)  # made to be told now, before a download and a training, what keeps it from it
    data = load_mnist(settings, allow_sample=True)
    with Client(settings) as client:
        model = _a_model_of(data, settings, client)
        folder = _write_images(data, settings.home / "demo" / _name_of(data))
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
    """A stack to be started; nothing where one is up. Raises UserError, SettingsError where it cannot be."""
    if settings.embedded_broker and broker_answers(settings):
        return nullcontext()
    return Stack(settings, logs=settings.home / "logs")


def _a_model_of(data: Mnist, settings: Settings, client: Client) -> Model:
    """The champion, if it learnt from the same data; else one that is trained now, champion or not."""
    for model in client.models():
        if "champion" in model.aliases and (evaluated := _evaluated_on(data, model, client)):
            say(f"using the champion {model.id}, test accuracy {evaluated.accuracy:.4f}")
            return model
    say(f"training on {len(data.train_images):,} images")
    trained = train_with_progress(settings, recipe_for("mlp", "quick", seed=1), data, replace=True)
    say(trained.reason)
    if "champion" not in trained.model.aliases:
        say(f"the demo is classified with model {trained.model.id} all the same")
    return trained.model


def _evaluated_on(data: Mnist, model: Model, client: Client) -> Evaluation | None:
    """What came of a model on the test images, where it learnt from such data. Not by the source: all other
    files than MNIST's are "folder". Nor by the training images: corrections join them.
    """
    if model.metrics.get("data") != data.source or model.classes != data.classes:
        return None
    with client.ledger.reading() as connection:
        found = find_evaluation(connection, model.id, data.evaluation_fingerprint)
    return found.evaluation if found else None


def _name_of(data: Mnist) -> str:
    """A name for these test images and their classes: other ones must not be taken for them."""
    known_by = "\n".join((data.evaluation_fingerprint, *data.classes))
    return f"{data.source}-{hashlib.sha256(known_by.encode()).hexdigest()[:12]}"


def _folder_of(label: int, name: str) -> str:
    """A class's folder: its number, so that the class can be told from it whatever its name is, and of the
    name what may stand in a path.
    """
    return str(label) if name == str(label) else f"{label}-{_NOT_IN_PATHS.sub('_', name)[:_NAME_LENGTH]}"


def _write_images(data: Mnist, folder: Path) -> Path:
    """The test images as PNG files in a folder for each class: what a person's own images look like."""
    from PIL import Image

    done = folder.with_suffix(".complete")
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with private_umask(), ProgressLine("writing PNG files", total=len(data.test_images)) as progress:
        folders = [folder / _folder_of(label, name) for label, name in enumerate(data.classes)]
        for each in folders:
            each.mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(data.test_images, data.test_labels, strict=True)):
            Image.fromarray(pixels).save(folders[label] / f"{number:05}.png")
            progress.update(number + 1)
        done.touch()
    return folder


def show_results(client: Client, status: JobStatus, data: Mnist, console: Console) -> None:
    """A table by class, a few images drawn, and what to type next."""
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
    if not total:  # somebody stopped the job before it had an outcome, and `watch` has said so
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
            "MNIST could not be had: this was the held-out part of a sample of 5,000 of its digits.\n"
            "Set LABELMILL_MNIST_DIR to a folder with the four IDX files to see all of it."
        )

    console.print("Some that are right, and the mistakes it was surest of:")
    shown = good[::3][:DRAWN] + wrong[:DRAWN]
    draw([_picture(prediction, _truth(prediction, data.classes)) for prediction in shown], console)
    me = command_name()
    console.print(
        f"\n{all_right:,} of {everything:,} right: accuracy {all_right / everything:.4f}\n\n"
        "What to type next:\n"
        f"  {me} predictions {status.id} --below 0.6    # what it was unsure of\n"
        f"  {me} up                                        # keep broker and workers running\n"
        f"  {me} submit FOLDER --watch                     # images of your own\n"
        f"  {me} classify IMAGE",
        markup=False,  # a folder may be called [red]
    )


def _picture(prediction: Prediction, truth: str) -> Picture:
    outcome = f"{prediction.label} {prediction.confidence:.2f}" if prediction.label else str(prediction.error)
    good = prediction.label == truth
    return Picture(Path(prediction.name).read_bytes(), outcome if good else f"{outcome}, is {truth}", good)


def _truth(prediction: Prediction, classes: Sequence[str]) -> str:
    """The class whose folder the image is in."""
    number, _, _ = Path(prediction.name).parent.name.partition("-")
    return classes[int(number)]
