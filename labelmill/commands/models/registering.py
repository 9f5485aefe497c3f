"""`labelmill models register` and `evaluate`: a model from elsewhere, and how good it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.dataset import MNIST
from jobs.model import Invert, Resampling
from labelmill.client import Client
from labelmill.commands.models.listing import evaluation_to_json
from labelmill.console import examples, print_data, print_json, report_errors, say
from labelmill.registration import describe_input
from producer.export import printable

if TYPE_CHECKING:
    from jobs.evaluation import Evaluation

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill models register digits.keras",
        "labelmill models register finch.keras --dataset birds",
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
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="The names of its classes, in the order of its output. Left out: those of the dataset.",
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="The dataset that it belongs to, and can be the champion of.")
    ] = MNIST,
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
            classes=None if classes is None else [name.strip() for name in classes.split(",")],
            dataset=dataset,
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
                "dataset": model.dataset,
                "architecture": model.architecture,
                "classes": model.classes,
                "input_spec": asdict(model.input_spec),
                "sha256": model.sha256,
            }
        )
    else:
        print_data(model.id)


@app.command(epilog=examples("labelmill models evaluate 06h0w4r0rf0dkckt"))
@report_errors
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure a model on MNIST's test images, and store the figures: `promote` judges by them.

    The champion is measured as well, unless it was measured on these images before. MNIST comes from the same
    place as for `train`.
    """
    with Client() as client:
        model = client.model(model).id
        evaluation = client.evaluate(model, on_message=say)
    if as_json:
        print_json({"model": model, **evaluation_to_json(evaluation)})
    else:
        _print_figures(evaluation)


def _print_figures(figures: Evaluation) -> None:
    low, high = figures.accuracy_low, figures.accuracy_high
    print_data(f"accuracy            {figures.accuracy:.4f}  (95 % between {low:.4f} and {high:.4f})")
    print_data(f"right               {figures.correct:,} of {figures.total:,}")
    print_data(f"log loss            {figures.log_loss:.4f}")
    print_data(f"calibration error   {figures.calibration_error:.4f}")
    print_data(f"time per image      {figures.image_microseconds:.1f} us")
    print_data("class                    precision  recall")
    for name, precision, recall in zip(figures.classes, figures.precision, figures.recall, strict=True):
        print_data(f"{printable(name):<25}{_share(precision):>9}{_share(recall):>8}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
