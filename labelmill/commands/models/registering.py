"""`labelmill models register` and `evaluate`: a model from elsewhere, and what it is worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from jobs.errors import Conflict, DataUnavailable, ModelRefused, UserError
from jobs.files import folder_for_now
from jobs.model import InputSpec, Invert, Model, Resampling
from jobs.model_file import check_model_file
from jobs.registry import register_model
from jobs.settings import Settings
from jobs.store import Store
from jobs.text import is_plain, storable
from labelmill.client import Client
from labelmill.commands.models.listing import evaluation_to_json
from labelmill.console import examples, print_data, print_json, say, tells_errors
from labelmill.training import load_mnist, need_tensorflow
from producer.export import printable

if TYPE_CHECKING:
    from jobs.evaluation import Evaluation
    from worker.predicting.classifier import Classifier

app = typer.Typer(add_completion=False)

#: Pictures of noise that a new model is tried on, beside a black and a white one.
_NOISE: Final = 30


@app.command(
    epilog=examples(
        "labelmill models register digits.keras",
        "labelmill models register shoes.keras --classes sandal,sneaker,boot --resampling lanczos",
    )
)
@tells_errors
def register(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .keras file that takes grey or RGB pictures of one size."),
    ],
    classes: Annotated[
        str, typer.Option(metavar="A,B,C", help="The names of its classes, in the order of its output.")
    ] = "0,1,2,3,4,5,6,7,8,9",
    architecture: Annotated[str, typer.Option(metavar="NAME", help="What to call its kind.")] = "custom",
    resampling: Annotated[
        Resampling, typer.Option(help="How pictures are brought to its size.")
    ] = "bilinear",
    invert: Annotated[
        Invert | None,
        typer.Option(
            help="Which pictures are turned into their negatives. Left out: those with a bright border where "
            "it takes what MNIST is, 28 x 28 grey; else none.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Register a model that was trained elsewhere; prints its id. It becomes the champion by `promote` only.

    The size and the colours of the pictures are read from the file; it is given their bytes, 0 to 255, and
    has to scale them itself. It is loaded and run once, to see that it is one that a worker can use.
    """
    names = tuple(name.strip() for name in classes.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"--classes {classes}: each class needs a name of its own.")
    if not all(map(is_plain, names)):
        raise UserError(f"--classes {classes!r}: no class can have a control character in its name.")
    need_tensorflow("Registering")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    with Client() as client:
        known = {model.id for model in client.models()}
        input_spec = _try_out(client.settings, file, data, names, resampling, invert)
        measurable = _has_classes_of_the_data(client.settings, names)
        model = register_model(
            client.ledger,
            Store(client.settings.store),
            data,
            architecture=architecture,
            classes=names,
            input_spec=input_spec,
            accuracy=None,
            metrics={"file": storable(file.name)},
        )
    if model.classes != names:
        raise Conflict(
            f"This file is model {model.id} already, with other classes: {', '.join(model.classes)}."
        )
    if model.input_spec != input_spec:
        raise Conflict(
            f"This file is model {model.id} already, with other pictures: {_in_words(model.input_spec)}."
        )
    say(f"model {model.id} was registered before" if model.id in known else f"model {model.id} is registered")
    say(f"  it is given: {_in_words(input_spec)}")
    say(f"  use it:      labelmill submit SOURCES --model {model.id}")
    if measurable:
        say(f"  measure it:  labelmill models evaluate {model.id}")
    else:
        say(f"  promote it:  labelmill models promote {model.id} --force")
        say("  (the data know other classes than it, so it cannot be measured on them)")
    if as_json:
        print_json(
            {
                "model": model.id,
                "new": model.id not in known,
                "architecture": model.architecture,
                "classes": model.classes,
                "input_spec": asdict(model.input_spec),
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
        wanted = client.model(model)
        data = load_mnist(client.settings)
        # Only here: it imports TensorFlow.
        from worker.learning.evaluation import evaluate_champion, evaluate_model

        def begins(each: Model) -> None:
            say(f"evaluating model {each.id} on {len(data.test_images):,} images")

        store, cache_dir = Store(client.settings.store), client.settings.cache_dir
        begins(wanted)
        figures = evaluate_model(client.ledger, store, cache_dir, wanted, data)
        try:
            evaluate_champion(client.ledger, store, cache_dir, data, on_begin=begins)
        except ModelRefused as error:
            say(f"the champion cannot be evaluated, so the gate cannot compare it with this one: {error}")
    if as_json:
        print_json({"model": wanted.id, **evaluation_to_json(figures)})
    else:
        _print_figures(figures)


def _try_out(
    settings: Settings,
    file: Path,
    data: bytes,
    classes: tuple[str, ...],
    resampling: Resampling,
    invert: Invert | None,
) -> InputSpec:
    """Loads and runs what was read, and no other bytes that lie there by then; gives back how pictures become
    its input. Raises UserError.
    """
    from worker.predicting.classifier import Classifier, input_spec_of, load_model

    # Nothing is written outside the state folder.
    with folder_for_now(settings.cache_dir, "registering-") as folder:
        copy = folder / "model.keras"
        copy.write_bytes(data)
        try:
            check_model_file(data)
            model = load_model(copy)
            spec = input_spec_of(model, resampling=resampling, invert=invert)
            _check_number(tuple(model.outputs[0].shape), classes)
            classifier = Classifier(model, classes, spec)
            classifier.warm_up()
            _check_answers(classifier)
        except ModelRefused as error:
            raise UserError(f"{file} cannot be used: {error}") from error
    return spec


def _check_number(answers: tuple[int | None, ...], classes: tuple[str, ...]) -> None:
    """Raises ModelRefused where the model has more or fewer classes than are named. Other faults of its
    output are told where it is tried.
    """
    match answers:
        case (None, int(number)) if number != len(classes):
            raise ModelRefused(
                f"the model answers {number} classes, and --classes names {len(classes)} (left out: the ten "
                f"digits): give the names of its {number}, in the order of its output, as in --classes A,B,C"
            )


def _check_answers(classifier: Classifier) -> None:
    """Raises ModelRefused where no picture gets probabilities. A network that has them for some is taken: one
    that divides by the contrast has none for a picture without any.
    """
    import numpy as np

    noise = np.random.default_rng(1).integers(0, 256, (_NOISE, *classifier.spec.shape), np.uint8)
    black, white = np.zeros_like(noise[:1]), np.full_like(noise[:1], 255)
    answers = classifier.predict(np.concatenate([black, white, noise]))
    if (answers.class_index < 0).all():
        raise ModelRefused(
            "the model answers no probabilities, of which all classes' together are 1: end it with a softmax"
        )


def _has_classes_of_the_data(settings: Settings, classes: tuple[str, ...]) -> bool:
    """Whether `evaluate` can measure a model of these classes, as far as that is known: the images may not be
    there yet.
    """
    from worker.learning.mnist import class_names

    try:
        return classes == class_names(settings.mnist_dir)
    except DataUnavailable:  # `evaluate` says it
        return True


def _in_words(spec: InputSpec) -> str:
    colours = "grey" if spec.mode == "L" else "RGB"
    inverted = {
        "never": "none inverted",
        "always": "all inverted",
        "dark_on_light": "inverted where the border is bright",
    }
    return f"{colours} bytes, {spec.width} x {spec.height}, {spec.resampling}, {inverted[spec.invert]}"


def _print_figures(figures: Evaluation) -> None:
    low, high = figures.accuracy_low, figures.accuracy_high
    print_data(f"accuracy            {figures.accuracy:.4f}  (95 % between {low:.4f} and {high:.4f})")
    print_data(f"right               {figures.correct:,} of {figures.total:,}")
    print_data(f"log loss            {figures.log_loss:.4f}")
    print_data(f"calibration error   {figures.calibration_error:.4f}")
    print_data(f"time an image       {figures.image_microseconds:.1f} us")
    print_data("class                    precision  recall")
    for name, precision, recall in zip(figures.classes, figures.precision, figures.recall, strict=True):
        print_data(f"{printable(name):<25}{_share(precision):>9}{_share(recall):>8}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
