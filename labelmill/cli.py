"""The console command `labelmill`. A command's module is imported when the command is run, not before."""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib import import_module, metadata
from inspect import cleandoc
from io import TextIOWrapper
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class _Entry(NamedTuple):
    """A command: the module in `labelmill.commands` that has it, and its line in the list."""

    module: str
    help: str


#: The end of an object is over by then.
_PRESSED_AGAIN_SECONDS: Final = 0.05

COMMANDS: Final = {
    "demo": _Entry("demo", "See it work: train on MNIST, classify 10,000 digits, show the results."),
    "up": _Entry("up", "Run the local stack in the foreground: broker, workers, trainer and beat."),
    "submit": _Entry("submit", "Submit images as one job; prints the job's id."),
    "classify": _Entry("classify", "Submit images, wait, and print their labels."),
    "status": _Entry("status", "Show how far a job is."),
    "jobs": _Entry("jobs", "List the latest jobs."),
    "predictions": _Entry("predictions", "Print or export a job's predictions."),
    "pause": _Entry("pause", "Hold a job up until it is resumed."),
    "resume": _Entry("resume", "Let a paused job go on."),
    "cancel": _Entry("cancel", "Stop a job; images that were classified keep their labels."),
    "retry": _Entry("retry", "Submit the images of a job that got no label again."),
    "correct": _Entry("correct", "Store what an image really is, for the next training run."),
    "train": _Entry("train", "Train a model on MNIST."),
    "retrain": _Entry("retrain", "Request a training run; its model is promoted if it is better."),
    "runs": _Entry("runs", "List the training runs, show one, or stop one."),
    "models": _Entry("models", "List, show, register, evaluate, compare and promote models."),
    "worker": _Entry("worker", "Run one Celery worker, for your own deployment."),
    "workers": _Entry("workers", "List the workers, and what they work on."),
    "ready": _Entry("ready", "A health check for one process of a deployment."),
    "metrics": _Entry("metrics", "Serve metrics for Prometheus."),
    "purge": _Entry("purge", "Remove old jobs, or what they no longer need."),
    "doctor": _Entry("doctor", "Check that everything works, and say how to fix what does not."),
    "db": _Entry("db", "Migrate the ledger, or record its object store."),
}

#: Those that have commands of their own.
GROUPS: Final = ("models", "runs", "db")


class _LazyGroup(TyperGroup):
    """A group that knows its commands by name and imports one when it is run."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # Stand-ins that have what the list and the advice on a mistyped name show: names and one line each.
        self.commands = {name: TyperCommand(name, help=entry.help) for name, entry in COMMANDS.items()}

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. What is wrong with an option is said without the jargon of what has found it."""
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

        Raises UsageError; if it is a command of a group, with the group's name.
        """
        if args[0] not in self.commands:
            meant = [f"'labelmill {group} {args[0]}'" for group in GROUPS if args[0] in subcommands(group)]
            if meant:
                ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(meant)}?")
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        return name, load_command(name), rest


def subcommands(name: str) -> dict[str, Any]:
    """Return the commands of a group by their names; none if it is not a group."""
    found: dict[str, Any] = getattr(load_command(name), "commands", {})
    return found


def load_command(name: str) -> Any:
    """Import the command with this name and return it."""
    entry = COMMANDS[name]
    command: Any = typer.main.get_command(import_module(f"labelmill.commands.{entry.module}").app)
    command.name = name
    for each in (command, *getattr(command, "commands", {}).values()):
        each.help = _unfolded(each.help or "")
    return command


def _unfolded(text: str) -> str:
    """A docstring with a line a paragraph. Typer keeps the ends of lines in all but the first, and a terminal
    has others.
    """
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(text).split("\n\n"))


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
        typer.echo(f"labelmill {metadata.version('labelmill')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Bulk image classification: folders of images in, SQL rows out."""


def main() -> None:
    """Runs the console command."""
    if sys.stdout is None:
        # Closed by whoever started us, who wants no data. Not for the next file that is opened to be it.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 -- till the end
    _speak_utf8()
    repeat_lost_interrupts()
    try:
        app()
    except SystemExit as end:
        # Help is written by Rich's own console, which exits with 1 where its reader has seen enough. What
        # the help was for may have a code of its own: a mistake.
        if isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(getattr(end.__context__.__context__, "exit_code", 0)) from None
        raise


def repeat_lost_interrupts() -> None:
    """Press Ctrl-C again where it got lost: it raises wherever the main thread is just then, and where that
    is the end of an object (the Redis client's close their connections there), Python drops what is raised,
    and no more than tells this hook.
    """
    other_losses = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            other_losses(lost)
            return
        # Not at once: here we are still inside of what swallows it.
        again = threading.Timer(_PRESSED_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def _speak_utf8() -> None:
    """Data in a pipe or a file is UTF-8, as in the files that the commands write and read themselves. A
    terminal has the encoding that it has: what is not in that is written out. So does Python on stderr.
    """
    if isinstance(sys.stdin, TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    if isinstance(sys.stdout, TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            # All that comes from the ledger is UTF-8. A path is not always, and is to be found by what is
            # written: it keeps its bytes.
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
