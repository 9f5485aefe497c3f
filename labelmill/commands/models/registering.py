"""`labelmill models register` and `evaluate`: a model from elsewhere, and how good it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.model import Invert, Resampling
from labelmill.client import Client
from labelmill.commands.models.listing import evaluation_to_json
from labelmill.console import examples, print_data, print_json, report_errors, say
from labelmill.figures import (
    class_lines,
    confusion_lines,
    labelled_lines,
    labelled_to_json,
    report_unlabelled,
    summary_lines,
)
from labelmill.progress import ProgressLine
from labelmill.registration import DIGITS, describe_input

if TYPE_CHECKING:
    from jobs.evaluation import Evaluation

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill models register digits.keras",
        "labelmill models register shoes.keras --classes sandal,sneaker,boot --resampling lanczos",
    )
)
@report_errors
def register(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .keras file that takes grey or RGB images of one size."),
    ],
    classes: Annotated[
        str, typer.Option(metavar="A,B,C", help="The names of its classes, in the order of its output.")
    ] = ",".join(DIGITS),
    architecture: Annotated[
        str, typer.Option(metavar="NAME", help="Its architecture, for lists.")
    ] = "custom",
    resampling: Annotated[Resampling, typer.Option(help="How images are resized for it.")] = "bilinear",
    invert: Annotated[
        Invert | None,
        typer.Option(
            help="Which images are inverted first. Left out: those with a bright border if the model takes "
            "MNIST's format, 28 x 28 grey, otherwise none.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Register a model that was trained elsewhere; prints its id. Only `promote` makes it the champion.

    The size and the colours of its images are read from the file. Its input is bytes, 0 to 255, which it must
    scale itself. It is loaded and run once, to check that workers can use it.
    """
    with Client() as client:
        registered = client.register(
            file,
            classes=[name.strip() for name in classes.split(",")],
            architecture=architecture,
            resampling=resampling,
            invert=invert,
        )
    model = registered.model
    say(f"model {model.id} " + ("is registered" if registered.new else "was registered before"))
    say(f"  its input:   {describe_input(model.input_spec)}")
    say(f"  use it:      labelmill submit SOURCES --model {model.id}")
    if registered.measurable:
        say(f"  measure it:  labelmill models evaluate {model.id}")
    else:
        say(f"  promote it:  labelmill models promote {model.id} --force")
        say("  (it cannot be measured: the evaluation images have other classes)")
    if as_json:
        print_json(
            {
                "model": model.id,
                "new": registered.new,
                "architecture": model.architecture,
                "classes": model.classes,
                "input_spec": asdict(model.input_spec),
                "sha256": model.sha256,
            }
        )
    else:
        print_data(model.id)


@app.command(
    epilog=examples(
        "labelmill models evaluate 06h0w4r0rf0dkckt",
        "labelmill models evaluate 06h0w4r0rf0dkckt --images photos/",
    )
)
@report_errors
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Measure it on these images instead, which are in folders named after its classes.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure a model on MNIST's test images, and store the figures: `promote` judges by them.

    The champion is measured as well, unless it was measured on these images before. MNIST comes from the same
    place as for `train`.

    With --images, nothing is stored. Images with an error count as wrong, and images whose folder is not a
    class of the model are left out.
    """
    with Client() as client:
        model = client.model(model).id
        if images is not None:
            _evaluate_images(client, model, images, as_json=as_json)
            return
        evaluation = client.evaluate(model, on_message=say)
    if as_json:
        print_json({"model": model, **evaluation_to_json(evaluation)})
    else:
        _print_evaluation(evaluation)


def _evaluate_images(client: Client, model: str, images: str, *, as_json: bool) -> None:
    with ProgressLine("classifying") as progress:
        found = client.evaluate_images(model, images, on_progress=progress.update)
    report_unlabelled(found)
    if as_json:
        print_json(labelled_to_json(found))
    else:
        print_data("\n".join(labelled_lines(found)))


def _print_evaluation(evaluation: Evaluation) -> None:
    lines = [
        *summary_lines(evaluation),
        f"log loss            {evaluation.log_loss:.4f}",
        f"calibration error   {evaluation.calibration_error:.4f}",
        f"time per image      {evaluation.image_microseconds:.1f} us",
        "",
        *class_lines(evaluation),
        "",
        *confusion_lines(evaluation),
    ]
    print_data("\n".join(lines))
