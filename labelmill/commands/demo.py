"""`labelmill demo`: from nothing to classified images. Data, model, PNG files, stack, job, results."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from jobs.errors import UserError
from jobs.extras import require_tensorflow
from jobs.files import private_umask
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import JobStatus
from jobs.ledger.learning.datasets import get_version
from jobs.ledger.learning.models import find_champion
from jobs.models.dataset import MNIST
from jobs.models.training_request import TrainingRequest
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.commands.follow_job import watch
from labelmill.commands.follow_run import add_mnist, retrain
from labelmill.console.drawing import Picture, draw
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import (
    Console,
    ExitCode,
    examples,
    exit_code_of,
    next_steps,
    report_errors,
    say,
)
from labelmill.local.stack import Stack, stack_is_up, stack_unless_up
from producer.export import printable

if TYPE_CHECKING:
    from worker.learning.data import Data

app = typer.Typer(add_completion=False)

#: How many correct images are drawn, and how many of the most confident mistakes.
DRAWN: Final = 4

#: Characters that a class's name can have, but a folder's name should not.
_NOT_IN_PATHS: Final = re.compile(r"[^\w-]+")

#: A folder's name has at most this many characters of its class's name: few enough for any file system.
_NAME_LENGTH: Final = 40


@app.command(
    epilog=examples("labelmill demo", "LABELMILL_MNIST_DIR=mnist/ LABELMILL_HOME=/tmp/mill labelmill demo")
)
@report_errors
def demo(
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Only write the test images into this new folder, as PNG files in a subfolder per class.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """See it work: train on MNIST, classify 10,000 digits, look at the results.

    Starts a broker and workers unless they run, trains a model unless the champion was evaluated on the same
    data, submits the test images as PNG files and shows the results. If MNIST cannot be downloaded, uses a
    sample of it and says so. Writes only into the state folder (LABELMILL_HOME) and FOLDER. Ends every
    process that it has started. Needs the extras `worker` and `local`, and `demo` for the sample.
    """
    require_tensorflow("The demo", "local")
    settings = Settings.load()
    if pictures is not None:
        _write_pictures(settings, pictures)
        return
    if not stack_is_up(settings):
        Stack(settings)  # fail now, not after a download and a training
    with Client(settings) as client:
        add_mnist(client, allow_sample=True)
        model_id = _champion(client) or _train(client)
        data = _test_data(client)
        folder = _write_images(data, settings)
        with stack_unless_up(settings) as stack:
            say("starting the workers" if stack else f"using the stack that is up in {settings.home}")
            with ProgressLine("submitting") as progress:
                submitted = client.submission(
                    client.sources([folder]), model=model_id, on_progress=progress.update
                )
            status = watch(client, submitted.job_id, own_stack=stack)
        show_results(client, status, data.classes, Console(highlight=False))
    raise SystemExit(exit_code_of(status))


def _write_pictures(settings: Settings, folder: Path) -> None:
    """Write the test images into a new folder. Raises UserError if it exists."""
    if folder.exists():
        raise UserError(f"{folder} exists: name a new folder, or remove this one.")
    with Client(settings) as client:
        add_mnist(client, allow_sample=True)
        data = _test_data(client)
        shutil.copytree(_write_images(data, settings), folder)
    say(f"{len(data.test):,} pictures are in {folder}")


def _test_data(client: Client) -> Data:
    """Return the test images, without those for training."""
    from worker.learning.stored import open_dataset

    images = open_dataset(client.settings, client.ledger, client.store, MNIST)
    return images.prepared(images.choose_input(), for_training=False)


def _champion(client: Client) -> str | None:
    """Return the id of the champion if it was evaluated on the latest version of the data, else None."""
    with client.ledger.reading() as connection:
        version = get_version(connection, MNIST)
        champion = find_champion(connection, MNIST)
        if champion is None or champion.accuracy_version != version.version:
            return None
    say(f"using the champion {champion.id}, test accuracy {champion.accuracy:.4f}")
    return champion.id


def _train(client: Client) -> str:
    """Train a model, and return its id. Exits if there is none."""
    request = TrainingRequest(architecture="mlp", profile="quick", seed=1)
    run = retrain(client, request, here=not client.trainer_is_running())
    if run.model_id is None:
        raise SystemExit(ExitCode.FAILED)
    if "champion" not in client.model(run.model_id).aliases:
        say(f"the demo uses model {run.model_id} anyway")
    return run.model_id


def _class_folder(label: int, name: str) -> str:
    """Return a class's folder: its number, which identifies it, and a readable part of its name."""
    return str(label) if name == str(label) else f"{label}-{_NOT_IN_PATHS.sub('_', name)[:_NAME_LENGTH]}"


def _write_images(data: Data, settings: Settings) -> Path:
    """Write the test images as PNG files, in a folder for each class. Return the folder of all."""
    from PIL import Image

    folder = settings.home / "demo" / f"{MNIST}-{data.evaluation_fingerprint[:12]}"
    done = folder.with_suffix(".complete")
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    with private_umask(), ProgressLine("writing PNG files", total=len(data.test)) as progress:
        folders = [folder / _class_folder(label, name) for label, name in enumerate(data.classes)]
        for each in folders:
            each.mkdir(parents=True)
        for number, label in enumerate(data.test.labels):
            Image.fromarray(data.test.images[number]).save(folders[label] / f"{number:05}.png")
            progress.update(number + 1)
        done.touch()
    return folder


def show_results(client: Client, status: JobStatus, classes: Sequence[str], console: Console) -> None:
    """Print a table by class, a few images, and the commands to try next."""
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    good: list[Prediction] = []
    wrong: list[Prediction] = []
    for prediction in client.predictions(status.id):
        label = _truth(prediction, classes)
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
    for label in filter(total.__contains__, classes):
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
    console.print("Some correct predictions, and the most confident mistakes:")
    shown = good[::3][:DRAWN] + wrong[:DRAWN]
    draw([_picture(prediction, _truth(prediction, classes)) for prediction in shown], console)
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
