"""How the console command talks: data on stdout, all the rest on stderr, and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import IntEnum
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final, NoReturn, ParamSpec

import rich.console

from jobs.errors import LabelmillError, UserError
from jobs.ledger.queries import JobStatus
from jobs.schema import JobState
from jobs.settings import Settings, unknown_variables
from jobs.text import storable
from producer.export import printable, printable_json

P = ParamSpec("P")

#: The largest number that both databases take.
_LARGEST: Final = 2**63 - 1

#: What the system says where nothing can be made or written, however often it is tried.
_NO_PLACE: Final = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS)

#: And where it could be, with more room.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

#: The width of a terminal that all output must fit.
_COLUMNS: Final = 80

#: Arguments that are lists of paths: on disk, a name may be any bytes.
_PATHS: Final = ("sources",)


class Console(rich.console.Console):
    """Rich's, but for readers that have seen enough (head, less). Rich exits with 1 then, all by itself."""

    def on_broken_pipe(self) -> None:
        """On stdout, raises BrokenPipeError: `tells_errors` knows what it means. On stderr nobody listens any
        more: nothing else is said, and the command goes on to the exit code that is the truth.
        """
        if not self.stderr:
            raise BrokenPipeError
        self.quiet = True
        # What is left in the buffer would be written by the shutdown of the interpreter, whose exit code then
        # says that it could not.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


#: For people. Data never goes here.
err = Console(stderr=True, highlight=False, soft_wrap=True)


class ExitCode(IntEnum):
    """What the console command exits with. A contract: scripts read them."""

    OK = 0  # all images classified
    FAILED = 1  # the job, the training run, or the command, failed or was stopped
    USAGE = 2  # the request cannot be carried out as it stands
    WITH_ERRORS = 3  # the job finished, some images got an error; the run finished, its model was refused
    INTERRUPTED = 130  # Ctrl-C; a job that was submitted goes on


def print_data(text: str) -> None:
    """A line of data."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """A JSON document, for programs."""
    print_data(printable_json(json.dumps(value, default=_plain, ensure_ascii=False, indent=2)))


def examples(*lines: str) -> str:
    """The closing lines of a command's help. Rich keeps a line break only where there is an empty line."""
    return "Examples:\n\n" + "\n\n".join(lines)


def command_name() -> str:
    """What to type to run this command again: its path, where its name alone would not find it."""
    if shutil.which("labelmill"):
        return "labelmill"
    path = Path(sys.executable).with_name("labelmill")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def next_steps(*steps: tuple[str, str]) -> str:
    """Return what to type, one command per line, from pairs of arguments and reason.

    The reasons stand behind the commands, or above them if a line would have more than 80 columns.
    """
    commands = [f"  {command_name()} {arguments}" for arguments, _ in steps]
    width = max(map(len, commands))
    lines = [f"{command:<{width}}  # {why}" for command, (_, why) in zip(commands, steps, strict=True)]
    if max(map(len, lines)) > _COLUMNS:
        lines = [f"  # {why}\n{command}" for command, (_, why) in zip(commands, steps, strict=True)]
    return "\n".join(lines)


def say(text: str) -> None:
    """A line for people."""
    err.print(printable_lines(text), markup=False)


def counted(number: int, thing: str, things: str | None = None) -> str:
    """So many of something, for people: `1 file`, `2 files`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def time_words(moment: datetime | None) -> str:
    """A point in time, for people; a dash where there is none."""
    return moment.isoformat(sep=" ", timespec="seconds") if moment else "-"


def fail(text: str, code: ExitCode = ExitCode.FAILED) -> NoReturn:
    """Says what is wrong and exits."""
    err.print("[bold red]labelmill:[/] ", end="")
    err.print(printable_lines(text), markup=False)
    raise SystemExit(code)


def exit_code_of(status: JobStatus) -> ExitCode:
    """What a finished job makes a command exit with."""
    if status.state != JobState.DONE:
        return ExitCode.FAILED
    return ExitCode.WITH_ERRORS if status.failed else ExitCode.OK


def tells_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turns a user's mistake into a message and an exit code, never a stack trace."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            _check_arguments(kwargs)
            if command.__name__ != "doctor":  # it has them among what it finds
                _say_unknown_settings()
            command(*args, **kwargs)
        except LabelmillError as error:
            fail(str(error), ExitCode(error.exit_code))
        except KeyboardInterrupt:
            fail("interrupted", ExitCode.INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, less) has seen enough. Nothing more may be written, not even by the shutdown
            # of the interpreter.
            sys.stdout = None
            raise SystemExit(ExitCode.OK) from None
        except OSError as error:
            _fail_with(error)

    return run


def _fail_with(error: OSError) -> NoReturn:
    """Says it in the system's words: a folder that may not be written, a disk that is full. Exits."""
    words = error.strerror or str(error)
    if isinstance(error.filename, str):
        words = f"{words}: {error.filename}"
        if error.errno in _NO_PLACE and _is_in_home(error.filename):
            advice = "LABELMILL_HOME says where the state folder is, and `labelmill doctor` looks at it"
            fail(f"{words}; {advice}", ExitCode.USAGE)
    elif error.errno in _NO_ROOM:
        words += ": make room where the output goes, and run it again"
    fail(words)


def _is_in_home(path: str) -> bool:
    try:
        return Path(path).is_relative_to(Settings.load().home)
    except LabelmillError:
        return False


@cache  # once a process: a command may be called by its group
def _say_unknown_settings() -> None:
    """Who means a setting and mistypes its name would go on with another ledger, and never know."""
    for name, meant in unknown_variables().items():
        say(f"{name} is no setting, and has no effect" + (f": is {meant} meant?" if meant else ""))


def _check_arguments(arguments: Mapping[str, object]) -> None:
    """Raises UserError for what no ledger could hold or be asked for. Paths may be any bytes."""
    for name, value in arguments.items():
        if isinstance(value, int) and not -_LARGEST - 1 <= value <= _LARGEST:
            raise UserError(f"{value} is too large a number: {_LARGEST:,} at the most.")
        texts = [] if name in _PATHS else value if isinstance(value, list) else [value]
        for text in texts:
            if isinstance(text, str) and storable(text) != text:
                raise UserError(f"{storable(text)} is not UTF-8, as ids, keys, names and labels are.")


def printable_lines(text: str) -> str:
    """Words for people in which nothing that they quote moves the cursor; they may have several lines."""
    return "\n".join(map(printable, text.split("\n")))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON")
