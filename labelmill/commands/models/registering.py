"""`labelmill models register` and `evaluate`: a model from elsewhere, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import LabelmillError
from jobs.models.dataset import MNIST, describe_accuracy, describe_version
from jobs.models.model import Invert, Model, Resampling, name_classes
from labelmill.client import Client
from labelmill.client.registration import describe_input
from labelmill.commands.follow_run import add_mnist
from labelmill.commands.models.classes import ClassesFileOption, ClassesOption, class_names_given
from labelmill.commands.models.compiling import RuntimesOption, milliseconds
from labelmill.commands.models.listing import evaluation_to_json
from labelmill.commands.options import AliasOfOption, AsJson
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import examples, print_value, report_errors, say
from labelmill.reporting.evaluation_lines import (
    class_lines,
    confusion_lines,
    labelled_lines,
    labelled_to_json,
    report_left_out,
    summary_lines,
)

if TYPE_CHECKING:
    from jobs.models.evaluation import Evaluation

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill models register digits.keras",
        "labelmill models register finch.keras --dataset birds",
        "labelmill models register shoes.keras --classes sandal,sneaker,boot --resampling lanczos",
        "labelmill models register birds.keras --classes-file birds.txt --logits",
    )
)
@report_errors
def register(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .keras file that takes grey or RGB images of one size."),
    ],
    classes: ClassesOption = None,
    classes_file: ClassesFileOption = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="It returns logits, not probabilities: a softmax is added.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The dataset that it belongs to, and on which it is then evaluated. "
            "Default: mnist, without an evaluation.",
        ),
    ] = None,
    architecture: Annotated[
        str, typer.Option(metavar="NAME", help="The architecture to show in lists.")
    ] = "custom",
    resampling: Annotated[Resampling, typer.Option(help="How images are resized for it.")] = "bilinear",
    invert: Annotated[
        Invert | None,
        typer.Option(
            help="Which images are inverted first. Default: those with a bright border if the model takes "
            "MNIST's format, 28 x 28 grey, otherwise none.",
        ),
    ] = None,
    runtimes: RuntimesOption = None,
    as_json: AsJson = False,
) -> None:
    """Register a .keras file that was trained elsewhere; prints its id. Only `promote` makes it the champion.

    The size and the colours of its images are read from the file. It gets bytes from 0 to 255, and must scale
    them itself. It is loaded and run once, to check that workers can use it. Registering the same file again
    returns the same model. Needs TensorFlow.

    Unless you name its classes, they are those of the dataset's latest version. If it has none, the model
    must take MNIST's format (28 x 28 grey) and have ten classes, which are then the digits. Images are
    inverted if they are `dark_on_light`, that is, if they have a bright border.
    """
    with Client() as client:
        registered = client.register(
            file,
            classes=class_names_given(classes, classes_file),
            dataset=dataset or MNIST,
            architecture=architecture,
            resampling=resampling,
            invert=invert,
            logits=logits,
            runtimes=runtimes or (),
            on_message=say,
        )
        model = registered.model
        say(f"model {model.id} " + ("is registered" if registered.new else "was registered before"))
        say(f"  its input:   {describe_input(model.input_spec)}")
        say(f"  its classes: {name_classes(model.classes)}")
        for runtime in client.runtimes(model.id)[:1]:
            say(f"  its runtime: {runtime.runtime}, {milliseconds(runtime)} ms per image")
        say(f"  use it:      labelmill submit SOURCES --model {model.id}")
        if registered.unfit is not None:
            say(f"  promote it:  labelmill models promote {model.id} --force")
            say(f"  (it cannot be measured: {registered.unfit})")
        elif dataset is None:
            say(f"  measure it:  labelmill models evaluate {model.id}")
        else:
            model = _evaluate_registered(client, model)
    shown = {
        "model": model.id,
        "new": registered.new,
        "dataset": model.dataset,
        "architecture": model.architecture,
        "classes": model.classes,
        "input_spec": model.input_spec,
        "logits": model.logits,
        "accuracy": model.accuracy,
        "sha256": model.sha256,
    }
    print_value(shown, model.id, as_json=as_json)


def _evaluate_registered(client: Client, model: Model) -> Model:
    """Evaluate a model that is registered now, and return it. If that fails, it stays registered."""
    try:
        client.evaluate(model.id, on_message=say)
    except LabelmillError as error:
        say(f"  measure it:  labelmill models evaluate {model.id}")
        say(f"  (it could not be measured now: {error})")
        return model
    model = client.model(model.id)
    accuracy = describe_accuracy(model.accuracy, model.dataset, model.accuracy_version)
    say(f"  accuracy:    {accuracy}")
    say(f"  promote it:  labelmill models promote {model.id}")
    return model


@app.command(
    epilog=examples(
        "labelmill models evaluate 06h0w4r0rf0dkckt",
        "labelmill models evaluate 06h0w4r0rf0dkckt --images photos/",
    )
)
@report_errors
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, or an alias.")],
    dataset: AliasOfOption = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Measure it on other images instead: a folder whose subfolders are named after its classes, "
            "or a manifest with the column label.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on its dataset's test images, and store the figures, which `promote` compares.

    These are accuracy, precision and recall per class, log loss, calibration error and time per image. The
    champion is measured as well, unless it was measured on these images before. The model's classes must be
    those of the dataset. MNIST is added if it is missing, as by `train`. Needs TensorFlow.

    The confusion matrix is printed if it fits the terminal, otherwise the most frequent confusions. If there
    are more than 40 classes, only those with the lowest recall are printed.

    With --images, nothing is stored, and the command prints what `labelmill evaluate` prints. Images with an
    error count as wrong, and images whose label or folder is not a class of the model are skipped.
    """
    with Client() as client:
        found = client.model(model, dataset=dataset)
        model = found.id
        if images is not None:
            _evaluate_images(client, model, images, as_json=as_json)
            return
        if found.dataset == MNIST:
            add_mnist(client)
        evaluation = client.evaluate(model, on_message=say)
        measured = client.model(model)
    data = describe_version(measured.dataset, measured.accuracy_version)
    text = "\n".join(_evaluation_lines(evaluation, data))
    print_value({"model": model, **evaluation_to_json(evaluation)}, text, as_json=as_json)


def _evaluate_images(client: Client, model: str, images: str, *, as_json: bool) -> None:
    with ProgressLine("classifying") as progress:
        found = client.evaluate_images(model, images, on_progress=progress.update)
    report_left_out(found)
    print_value(labelled_to_json(found), "\n".join(labelled_lines(found)), as_json=as_json)


def _evaluation_lines(evaluation: Evaluation, data: str) -> list[str]:
    return [
        f"data                {data}",
        *summary_lines(evaluation),
        f"log loss            {evaluation.log_loss:.4f}",
        f"calibration error   {evaluation.calibration_error:.4f}",
        f"time per image      {evaluation.image_microseconds:.1f} us",
        "",
        *class_lines(evaluation),
        "",
        *confusion_lines(evaluation),
    ]
