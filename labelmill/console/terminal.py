"""What all commands share: data on stdout, everything else on stderr, and the exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import IntEnum
from functools import cache, wraps
from pathlib import Path
from typing import IO, Any, Final, NoReturn, ParamSpec

import rich.console

from jobs.errors import LabelmillError, UserError
from jobs.ledger.jobs.queries import JobStatus
from jobs.schema import JobState
from jobs.settings import Settings, unknown_variables
from jobs.text import storable
from producer.export import printable, printable_json

P = ParamSpec("P")

#: The largest integer that both databases can store.
_MAX_INTEGER: Final = 2**63 - 1

#: System errors that mean that a file cannot be written here at all.
_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS)

#: System errors that mean that there is not enough space.
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

#: A list of numbers in a JSON document that is indented.
_NUMBERS: Final = re.compile(r"\[\n\s*((?:[-+.\deE]+|null)(?:,\n\s*(?:[-+.\deE]+|null))*)\n\s*\]")
_LINE_BREAK: Final = re.compile(r"\n\s*")

#: The width of a terminal that all output must fit.
_COLUMNS: Final = 80

#: Arguments that are lists of paths. On disk, a name may be any bytes.
_PATH_ARGUMENTS: Final = ("sources",)


class Console(rich.console.Console):
    """Rich's console, except that closing the pipe early (head, less) is not an error."""

    def on_broken_pipe(self) -> None:
        """On stdout, raise BrokenPipeError, which `report_errors` handles; on stderr, stop writing and go on.

        Rich itself would exit with 1.
        """
        if not self.stderr:
            raise BrokenPipeError
        self.quiet = True
        discard_output(self.file)


def discard_output(stream: IO[str]) -> None:
    """Discard what the stream still holds and gets.

    The interpreter would write the rest of its buffer at shutdown, fail, and exit with 120.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


#: For messages to people. Data never goes here.
err = Console(stderr=True, highlight=False, soft_wrap=True)


class ExitCode(IntEnum):
    """What the console command exits with. Scripts rely on these codes."""

    OK = 0  # all images classified
    FAILED = 1  # the job, the training run or the command failed or was stopped
    USAGE = 2  # the request cannot be carried out as it stands
    WITH_ERRORS = 3  # the job finished with per-image errors, or the run with a refused model
    INTERRUPTED = 130  # Ctrl-C; a submitted job goes on


def print_data(text: str) -> None:
    """Print a line of data."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Print a JSON document, for programs. A dataclass is an object."""
    print_data(json_text(value))


def print_value(value: Any, text: str, *, as_json: bool) -> None:
    """Print the value as JSON, for programs, or else the text."""
    print_data(json_text(value) if as_json else text)


def json_text(value: Any) -> str:
    """Return a JSON document, for programs. A list of numbers, such as the row of a matrix, is one line."""
    text = json.dumps(value, default=_json_default, ensure_ascii=False, indent=2)
    # In JSON, a line break cannot be in a string.
    return printable_json(_NUMBERS.sub(lambda found: f"[{_LINE_BREAK.sub(' ', found[1])}]", text))


def examples(*lines: str) -> str:
    """Return the last lines of a command's help. Rich keeps a line break only at an empty line."""
    return "Examples:\n\n" + "\n\n".join(lines)


def command_name() -> str:
    """Return the name to type for this command, or its path if the name is not in PATH."""
    if shutil.which("labelmill"):
        return "labelmill"
    path = Path(sys.executable).with_name("labelmill")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def next_steps(*steps: tuple[str, str]) -> str:
    """Return lines of commands to type next, from pairs of arguments and reason.

    Each reason follows its command, or stands above it if a line would have more than 80 columns.
    """
    commands = [f"  {command_name()} {arguments}" for arguments, _ in steps]
    width = max(map(len, commands))
    lines = [f"{command:<{width}}  # {why}" for command, (_, why) in zip(commands, steps, strict=True)]
    if max(map(len, lines)) > _COLUMNS:
        lines = [f"  # {why}\n{command}" for command, (_, why) in zip(commands, steps, strict=True)]
    return "\n".join(lines)


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    err.print(printable_lines(text), markup=False)


def pluralize(number: int, thing: str, things: str | None = None) -> str:
    """Return a number of things for people: `1 file`, `2 files`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def format_time(moment: datetime | None) -> str:
    """Return a point in time for people; a dash if there is none."""
    return moment.isoformat(sep=" ", timespec="seconds") if moment else "-"


def format_duration(seconds: float) -> str:
    """Return a duration for people: 48 s, 9 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def fail(text: str, code: ExitCode = ExitCode.FAILED) -> NoReturn:
    """Print what is wrong, and exit."""
    err.print("[bold red]labelmill:[/] ", end="")
    err.print(printable_lines(text), markup=False)
    raise SystemExit(code)


def exit_code_of(status: JobStatus) -> ExitCode:
    """Return the exit code for a finished job."""
    if status.state != JobState.DONE:
        return ExitCode.FAILED
    return ExitCode.WITH_ERRORS if status.failed else ExitCode.OK


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn a command's errors into a message and an exit code instead of a stack trace."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            _check_arguments(kwargs)
            _report_unknown_settings()
            command(*args, **kwargs)
        except LabelmillError as error:
            fail("\n".join([str(error), *getattr(error, "__notes__", ())]), ExitCode(error.exit_code))
        except KeyboardInterrupt:
            fail("interrupted", ExitCode.INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, less) closed the pipe. Nothing more may be written, not even at shutdown.
            sys.stdout = None
            raise SystemExit(ExitCode.OK) from None
        except OSError as error:
            _fail_os_error(error)

    return run


def _fail_os_error(error: OSError) -> NoReturn:
    """Print what the system reports, such as a read-only folder or a full disk, and exit."""
    message = error.strerror or str(error)
    if isinstance(error.filename, str):
        message = f"{message}: {error.filename}"
        if error.errno in _NOT_WRITABLE and _is_in_home(error.filename):
            advice = "LABELMILL_HOME says where the state folder is, and `labelmill doctor` checks it"
            fail(f"{message}; {advice}", ExitCode.USAGE)
    elif error.errno in _DISK_FULL:
        message += ": free some space, and run the command again"
    fail(message)


def _is_in_home(path: str) -> bool:
    try:
        return Path(path).is_relative_to(Settings.load().home)
    except LabelmillError:
        return False


@cache  # once per process: a group runs before its command
def _report_unknown_settings() -> None:
    """Report variables that are no settings: a mistyped name would silently select another ledger."""
    for name, meant in unknown_variables().items():
        say(f"{name} is not a setting and has no effect" + (f": did you mean {meant}?" if meant else ""))


def _check_arguments(arguments: Mapping[str, object]) -> None:
    """Raise UserError for numbers and texts that no ledger can store. Paths may be any bytes."""
    for name, value in arguments.items():
        if isinstance(value, int) and not -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
            raise UserError(f"{value} is too large: the largest number is {_MAX_INTEGER:,}.")
        texts = [] if name in _PATH_ARGUMENTS else value if isinstance(value, list) else [value]
        for text in texts:
            if isinstance(text, str) and storable(text) != text:
                raise UserError(f"{storable(text)} is not UTF-8: ids, keys, names and labels must be.")


def printable_lines(text: str) -> str:
    """Return text of several lines with all other control characters written out."""
    return "\n".join(map(printable, text.split("\n")))


def _json_default(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
