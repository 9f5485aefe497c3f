"""`labelmill models register` and `evaluate`: a model from elsewhere, and what it is worth."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import Conflict, ModelRefused, UserError
from jobs.files import make_private_folder
from jobs.ledger.evaluations import find_evaluation
from jobs.ledger.models import find_champion, get_model
from jobs.model import MNIST_INPUT, Model
from jobs.model_file import check_model_file
from jobs.registry import register_model
from jobs.settings import Settings
from jobs.store import Store
from labelmill.client import Client
from labelmill.commands.models.listing import evaluation_to_json
from labelmill.console import examples, print_data, print_json, say, tells_errors
from labelmill.training import load_mnist, need_tensorflow

if TYPE_CHECKING:
    from jobs.evaluation import Evaluation

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill models register digits.keras",
        "labelmill models register shoes.keras --classes sandal,sneaker,boot --architecture resnet",
    )
)
@tells_errors
def register(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .keras file that takes 28 x 28 bytes an image."),
    ],
    classes: Annotated[
        str, typer.Option(metavar="A,B,C", help="The names of its classes, in the order of its output.")
    ] = "0,1,2,3,4,5,6,7,8,9",
    architecture: Annotated[str, typer.Option(metavar="NAME", help="What to call its kind.")] = "custom",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Register a model that was trained elsewhere; prints its id. It becomes the champion by `promote` only.

    The file is loaded once, to see that it is one that a worker can use.
    """
    names = tuple(name.strip() for name in classes.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"--classes {classes}: each class needs a name of its own.")
    need_tensorflow("Registering")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    with Client() as client:
        known = {model.id for model in client.models()}
        _try_out(client.settings, file, data, names)
        model = register_model(
            client.ledger,
            Store(client.settings.store),
            data,
            architecture=architecture,
            classes=names,
            input_spec=MNIST_INPUT,
            accuracy=None,
            metrics={"file": file.name},
        )
    if model.id in known and model.classes != names:
        raise Conflict(
            f"This file is model {model.id} already, with other classes: {', '.join(model.classes)}."
        )
    say(f"model {model.id} was registered before" if model.id in known else f"model {model.id} is registered")
    say(f"  measure it:  labelmill models evaluate {model.id}")
    if as_json:
        print_json(
            {
                "model": model.id,
                "new": model.id not in known,
                "architecture": model.architecture,
                "classes": model.classes,
                "sha256": model.sha256,
            }
        )
    else:
        print_data(model.id)


@app.command(epilog=examples("labelmill models evaluate 06h0w4r0rf0dkckt"))
@tells_errors
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure a model on MNIST's test images, and keep the figures: `promote` judges by them.

    The champion is measured as well where it was not yet on these images. MNIST comes from where `train`
    takes it.
    """
    with Client() as client:
        with client.ledger.reading() as connection:
            wanted, champion = get_model(connection, model), find_champion(connection)
        data = load_mnist(client.settings)
        # Only here: it imports TensorFlow.
        from worker.learning.evaluation import evaluate_model

        def measure(each: Model) -> Evaluation:
            say(f"evaluating model {each.id} on {len(data.test_images):,} images")
            return evaluate_model(
                client.ledger, Store(client.settings.store), client.settings.cache_dir, each, data
            )

        figures = measure(wanted)
        if champion is not None and champion.id != wanted.id and champion.classes == data.classes:
            with client.ledger.reading() as connection:
                known = find_evaluation(connection, champion.id, data.evaluation_fingerprint)
            if known is None:
                measure(champion)
    if as_json:
        print_json({"model": wanted.id, **evaluation_to_json(figures)})
    else:
        _print_figures(figures)


def _try_out(settings: Settings, file: Path, data: bytes, classes: tuple[str, ...]) -> None:
    """Loads what was read, and no other bytes that lie there by then. Raises UserError."""
    from worker.predicting.classifier import Classifier

    make_private_folder(settings.cache_dir)  # nothing is written outside the state folder
    with tempfile.TemporaryDirectory(prefix="registering-", dir=settings.cache_dir) as folder:
        copy = Path(folder) / "model.keras"
        copy.write_bytes(data)
        try:
            check_model_file(data)
            Classifier.load(copy, classes, MNIST_INPUT).warm_up()
        except ModelRefused as error:
            raise UserError(f"{file} cannot be used: {error}") from error


def _print_figures(figures: Evaluation) -> None:
    low, high = figures.accuracy_low, figures.accuracy_high
    print_data(f"accuracy            {figures.accuracy:.4f}  (95 % between {low:.4f} and {high:.4f})")
    print_data(f"right               {figures.correct:,} of {figures.total:,}")
    print_data(f"log loss            {figures.log_loss:.4f}")
    print_data(f"calibration error   {figures.calibration_error:.4f}")
    print_data(f"time an image       {figures.image_microseconds:.1f} us")
    print_data("class                    precision  recall")
    for name, precision, recall in zip(figures.classes, figures.precision, figures.recall, strict=True):
        print_data(f"{name:<25}{_share(precision):>9}{_share(recall):>8}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
