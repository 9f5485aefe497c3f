"""`labelmill models edit` and `remove`: correct class names, and remove a model that nobody needs."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.errors import UserError
from jobs.models.model import name_classes
from labelmill.client import Client
from labelmill.commands.models.classes import ClassesFileOption, ClassesOption, class_names_given
from labelmill.commands.options import AsJson
from labelmill.console.terminal import examples, pluralize, print_value, report_errors, say

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "labelmill models edit 06h0w4r0rf0dkckt --classes crow,magpie,jay",
        "labelmill models edit 06h0w4r0rf0dkckt --classes-file birds.txt",
    )
)
@report_errors
def edit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")],
    classes: ClassesOption = None,
    classes_file: ClassesFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Correct the names of a model's classes, in the order of its output.

    Its evaluations are removed, because they use the old names. Refused once a job, a correction, a training
    run, an alias or a promotion refers to the model.
    """
    names = class_names_given(classes, classes_file)
    if names is None:
        raise UserError("Name the classes: --classes A,B,C, or --classes-file FILE with one per line.")
    with Client() as client:
        before = client.model(model)
        edited = client.edit_model(before.id, classes=names)
    say(f"the classes of model {edited.id} are {name_classes(edited.classes)}")
    if before.accuracy is not None:
        say(f"its evaluation is removed: repeat it with labelmill models evaluate {edited.id}")
    print_value(edited, edited.id, as_json=as_json)


@app.command(
    epilog=examples(
        "labelmill models remove 06h0w4r0rf0dkckt", "labelmill models remove --refused --older-than 30"
    )
)
@report_errors
def remove(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="The model's id.")] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="Remove all models that the gate refused and nobody uses.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(min=0, metavar="DAYS", help="With --refused: only models made so many days ago."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Remove a model that nothing refers to, with its file and its evaluations.

    Refused if a job, a correction, an alias or a promotion refers to the model, or if the gate has compared
    another model with it. The message says what refers to it. A training run keeps its model unless the gate
    refused it; the run itself always stays.
    """
    if refused == (model is not None) or (older_than and not refused):
        raise UserError("Name a model, or give --refused, alone or with --older-than DAYS.")
    with Client() as client:
        if model is None:
            all_removed = client.remove_refused_models(older_than_days=older_than)
            say(f"{pluralize(len(all_removed), 'refused model')} removed")
            print_value(all_removed, "\n".join(each.id for each in all_removed), as_json=as_json)
            return
        removed = client.remove_model(model)
    say(f"model {removed.id} is removed, with its file of {removed.size_bytes:,} bytes")
    print_value(removed, removed.id, as_json=as_json)
