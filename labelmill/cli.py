"""The console command `labelmill`. A command's module is imported when the command is run, not before."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from importlib import import_module, metadata
from inspect import cleandoc
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

#: Delay before a lost Ctrl-C is repeated. The finalizer that swallowed it has ended by then.
_REPEAT_DELAY_SECONDS: Final = 0.05

#: The commands, and the help text of each in their list.
COMMANDS: Final = {
    "demo": "See it work: train on MNIST, classify 10,000 digits, show the results.",
    "up": "Run the local stack in the foreground: broker, workers, trainer, beat and API.",
    "submit": "Submit images as one job; prints the job's id.",
    "classify": "Submit images, wait, and print their labels.",
    "status": "Show the progress of a job.",
    "jobs": "List the latest jobs.",
    "predictions": "Print or export a job's predictions.",
    "pause": "Pause a job until it is resumed.",
    "resume": "Resume a paused job.",
    "cancel": "Stop a job; images that were classified keep their labels.",
    "retry": "Resubmit the images of a job that got no label.",
    "review": "List the images of a job that are most worth checking.",
    "evaluate": "Compare a job's labels with the folders that its images are in.",
    "correct": "Store the true label of an image, for the next training run.",
    "train": "Train a model on a dataset.",
    "retrain": "Request a training run; its model is promoted if it is better.",
    "schedule": "Set when a dataset's model is trained, and list the schedules.",
    "gate": "Set what a model must reach to become champion, and list these limits.",
    "runs": "List the training runs, show one, or stop one.",
    "datasets": "List, show, add and remove datasets: labelled images to train on.",
    "backbones": "List, add and remove pretrained networks to train on.",
    "models": "List, show, register, evaluate, compare and promote models.",
    "serve": "Serve the HTTP API.",
    "projects": "List and create projects: tenants that share an installation.",
    "keys": "List, create and revoke keys of the HTTP API.",
    "webhooks": "List, add and remove webhooks, and show what was sent.",
    "worker": "Run one Celery worker, for your own deployment.",
    "workers": "List the workers, and what they work on.",
    "ready": "A health check for one process of a deployment.",
    "metrics": "Serve metrics for Prometheus.",
    "purge": "Remove old jobs, or what they no longer need.",
    "doctor": "Check that everything works, and say how to fix what does not.",
    "db": "Migrate the ledger, or record its object store.",
}

#: The module in `labelmill.commands`, for commands whose module has another name.
_MODULES: Final = {"pause": "control", "resume": "control", "cancel": "control"}

#: Commands that use the HTTP API if LABELMILL_API_URL is set.
REMOTE: Final = ("submit", "status", "jobs", "predictions", "pause", "resume", "cancel", "retry", "correct")

#: Commands that are groups of commands.
GROUPS: Final = ("datasets", "backbones", "models", "runs", "projects", "keys", "webhooks", "db")


class _LazyGroup(TyperGroup):
    """A group that imports a command only when it is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Placeholders: the list and the hint for a mistyped name show only the names and one line each.
        self.commands = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Reword what Pydantic says about a wrong option in plain English."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as wrong:
            problems: list[dict[str, Any]] = getattr(wrong.__cause__, "errors", list)()
            if problems:
                from jobs.settings import plain_reason

                wrong.message = plain_reason(problems[0])
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command itself, to run it or to complete its options.

        Raises UsageError if there is none; if a group has a command of this name, the error says so.
        """
        if args[0] not in self.commands:
            meant = [f"'labelmill {group} {args[0]}'" for group in GROUPS if args[0] in subcommands(group)]
            if meant:
                ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(meant)}?")
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        if name not in REMOTE and os.environ.get("LABELMILL_API_URL"):
            typer.echo(
                f"`labelmill {name}` does not use LABELMILL_API_URL: it works on this machine.", err=True
            )
        return name, load_command(name), rest


def subcommands(name: str) -> dict[str, Any]:
    """Return the commands of a group by name; an empty dictionary if it is not a group."""
    found: dict[str, Any] = getattr(load_command(name), "commands", {})
    return found


def load_command(name: str) -> Any:
    """Import the command with this name and return it."""
    module = _MODULES.get(name, name)
    command: Any = typer.main.get_command(import_module(f"labelmill.commands.{module}").app)
    if name in _MODULES:
        command = command.commands[name]
    command.name = name
    for each in (command, *getattr(command, "commands", {}).values()):
        each.help = _unwrap(each.help or "")
    return command


def _unwrap(text: str) -> str:
    """Return a docstring with each paragraph, and each item of a list, on one line.

    Typer keeps line breaks in all paragraphs but the first, and terminals have other widths.
    """
    return "\n\n".join(
        "\n".join(" ".join(line.split()) for line in re.split(r"\n(?=- )", paragraph))
        for paragraph in cleandoc(text).split("\n\n")
    )


app = typer.Typer(
    cls=_LazyGroup,
    name="labelmill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 all classified, 1 failed, 2 usage, 3 finished with per-image errors or a refused "
    "model, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        # Made by `make release` and the Dockerfile; a checkout has none.
        file = Path(__file__).parent / "revision.txt"
        revision = file.read_text(encoding="utf-8") if file.exists() else ""
        version = metadata.version("labelmill")
        typer.echo(f"labelmill {version}, revision {revision}" if revision else f"labelmill {version}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Bulk image classification: folders of images in, SQL rows out."""


def main() -> None:
    """Run the console command."""
    if sys.stdout is None:
        # The caller closed stdout. The next file that is opened must not take its place and get the data.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 -- till the end
    _use_utf8()
    repeat_lost_interrupts()
    try:
        app()
    except SystemExit as end:
        _drop_unwritten_output(end)
        # Rich prints the help itself, and exits with 1 if the pipe is closed early, which is not an error.
        # Help that follows a usage error keeps that error's exit code.
        if isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(getattr(end.__context__.__context__, "exit_code", 0)) from None
        raise


def _drop_unwritten_output(end: SystemExit) -> None:
    """Drop what could not be written, if that was reported or the reader closed the pipe."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            if end.code or isinstance(error, BrokenPipeError):
                from labelmill.console.terminal import discard_output  # only now: it imports SQLAlchemy

                discard_output(stream)


def repeat_lost_interrupts() -> None:
    """Send Ctrl-C again if it got lost in a finalizer.

    Ctrl-C raises KeyboardInterrupt wherever the main thread is. In a finalizer (the Redis client's closes
    its connections), Python drops the exception and only calls this hook.
    """
    other_losses = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            other_losses(lost)
            return
        # Not at once: the finalizer that swallows exceptions is still running.
        again = threading.Timer(_REPEAT_DELAY_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def _use_utf8() -> None:
    """Use UTF-8 on pipes and files, as in the files that the commands read and write themselves.

    A terminal keeps its encoding. Characters that it does not have are escaped, as Python does on stderr.
    """
    if isinstance(sys.stdin, TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    if isinstance(sys.stdout, TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            # Data from the ledger is always UTF-8. A path may not be: it keeps its bytes, so that it still
            # names the file.
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
