"""Options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, Final, ParamSpec, get_type_hints

import annotated_types
import typer

from jobs.limits import MAX_TOP_K
from jobs.models.training_request import TrainingRequest
from jobs.options import DEFAULT_PROJECT

P = ParamSpec("P")

#: For commands that print one thing, and for those that list.
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]
AsJsonList = Annotated[bool, typer.Option("--json", help="Print a JSON list.")]

#: The dataset whose champion or challenger a command is about.
DatasetOption = Annotated[str, typer.Option("--dataset", metavar="NAME", help="The dataset.")]

#: The same for commands that also take a model, which then must belong to the dataset.
ChampionOfOption = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="Use this dataset's champion. Default: mnist."),
]

#: The same for commands that need a model, which may be named by an alias.
AliasOfOption = Annotated[
    str | None,
    typer.Option("--dataset", metavar="NAME", help="The dataset of the alias. Default: mnist."),
]

#: The project that a command acts for, or whose things it lists.
ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", metavar="NAME", help=f"The project that it belongs to. Default: {DEFAULT_PROJECT}."
    ),
]
OnlyProjectOption = Annotated[
    str | None, typer.Option("--project", metavar="NAME", help="Only those of this project.")
]

#: How many of the most probable classes a job's predictions keep.
TopOption = Annotated[
    int | None,
    typer.Option(
        "--top",
        min=1,
        max=MAX_TOP_K,
        metavar="K",
        help=f"Also keep the K most probable classes of each image, 1 to {MAX_TOP_K}.",
    ),
]

#: How a field of TrainingRequest is spelled as an option, if not by its name, and what its value is called.
_SPELLED: Final = {"start": "--from"}
_METAVARS: Final = {"dataset": "NAME", "backbone": "NAME", "start": "MODEL", "max_minutes": "MINUTES"}


def training_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of TrainingRequest with these names, by default all.

    They replace its parameter `how`, which gets those that the user gave.
    """
    hints = get_type_hints(TrainingRequest, include_extras=True)
    chosen = [each for each in fields(TrainingRequest) if each.name in (names or hints)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_options(**arguments: Any) -> None:
            given = {each.name: arguments.pop(each.name) for each in chosen}
            command(**arguments, how={name: value for name, value in given.items() if value is not None})

        own = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in own.parameters.values():
            if parameter.name == "how":
                parameters += [_option(each.name, hints[each.name], each.default) for each in chosen]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        signature = own.replace(parameters=parameters)
        with_options.__signature__ = signature  # type: ignore[attr-defined]
        with_options.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
        return with_options

    return decorate


def _option(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """Return the command's parameter for a field, with the field's text and bounds."""
    kind, field = hint.__origin__, hint.__metadata__[0]
    lowest: Any = next((each.ge for each in field.metadata if isinstance(each, annotated_types.Ge)), None)
    highest: Any = next((each.le for each in field.metadata if isinstance(each, annotated_types.Le)), None)
    # The lowest minutes are more than 0, which an option cannot say: the request checks it.
    is_whole = int in getattr(kind, "__args__", (kind,))
    option = typer.Option(
        _SPELLED.get(name, "--" + name.replace("_", "-")),
        min=lowest if is_whole else None,
        max=highest if is_whole else None,
        metavar=_METAVARS.get(name),
        help=field.description,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
