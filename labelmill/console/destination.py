"""Where a command writes: a file on this machine, an object behind a URL, or standard output."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any, Final, TypeVar

import typer

from jobs.errors import Conflict, UserError
from jobs.network.objects import is_url, local_path, shown_url, writing_object
from producer.export import Escape, printable, spreadsheet_text

FormatT = TypeVar("FormatT", bound=StrEnum)

#: Standard output, as a value of `--output`. A file of that name is `./-`.
STDOUT: Final = "-"


#: The option of the commands that write CSV.
SpreadsheetOption = Annotated[
    bool,
    typer.Option(
        "--spreadsheet",
        help="Escape texts in CSV that a spreadsheet would take for formulas, such as =1+1.",
    ),
]


def output_option(help: str) -> Any:  # noqa: A002 -- as typer calls it
    """Return the option `--output` of a command. It is text: a Path turns `s3://` into `s3:/`."""
    return typer.Option("--output", "-o", metavar="FILE", path_type=str, help=help)


@contextmanager
def opened(output: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Open the file, the object or stdout for writing. An object appears only when it is complete.

    Raises Conflict if it exists and `force` is not given, UserError if it cannot be written, Unavailable.
    """
    if output == STDOUT:
        yield sys.stdout.buffer
        # Now, while a closed pipe or a full disk can still be reported.
        sys.stdout.buffer.flush()
        return
    name = shown(output) or "''"
    try:
        path = local_path(output)
        if is_url(path):
            if path.partition("://")[0].lower() == "memory":
                raise ValueError("this memory ends with the command")
            with writing_object(path, over=force) as written:
                yield written
            return
        file = _open_file(Path(path), over=force)
    except FileExistsError:
        raise Conflict(
            f"{name} exists already: --force overwrites it, or name another file with --output."
        ) from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        # Some errors have no text, such as those of a missing bucket.
        default = "Permission denied" if isinstance(error, PermissionError) else "No such file or directory"
        reason = error.strerror or default
        raise UserError(f"{name} cannot be written ({reason}): name another file with --output.") from None
    except (ValueError, ImportError) as error:
        raise UserError(f"{name} cannot be written ({error}): name another file with --output.") from None
    with file:
        yield file


def choose_format(
    by_option: Mapping[str, FormatT | None],
    output: str | None,
    by_ending: Mapping[str, FormatT],
    default: FormatT,
) -> FormatT:
    """Return the format that the options and the file's ending name, or `default` if neither does.

    Raises UserError if they name two, or if the ending is unknown and no option names one.
    """
    ending = "" if output is None else Path(shown(output)).suffix.lower()  # without the query of a URL
    named = dict(by_option)
    if output is not None:
        named[shown(output)] = by_ending.get(ending)
    meant = {what: each for what, each in named.items() if each is not None}
    if len(set(meant.values())) > 1:
        words = " and ".join(f"{each} by {what}" for what, each in meant.items())
        raise UserError(f"Two formats are given, {words}: leave one of them out, or name another file.")
    if not meant and ending:
        raise UserError(
            f"No format ends in {ending}: choose one with --format ({', '.join(type(default))}), or end the "
            f"file's name in {', '.join(by_ending)}."
        )
    return next(iter(meant.values()), default)


def shown(output: str) -> str:
    """Return the path or URL of the output, without secrets."""
    return shown_url(output) if is_url(output) else output


def _open_file(path: Path, *, over: bool) -> IO[bytes]:
    # A device or a pipe always exists, and opening it loses no data.
    over = over or (path.exists() and not path.is_file())
    return path.open("wb" if over else "xb")


def csv_escape(form: StrEnum, output: str | None, *, spreadsheet: bool) -> Escape | None:
    """Return how the texts of CSV are escaped: for a spreadsheet, for a terminal, or not at all.

    Raises UserError if it is for a spreadsheet, and the format is a different one.
    """
    if spreadsheet and form != "csv":
        raise UserError(f"--spreadsheet is for CSV, and the format is {form}: add --format csv.")
    if spreadsheet:
        return spreadsheet_text
    return printable if output is None and sys.stdout.isatty() else None


@contextmanager
def as_text(file: IO[bytes]) -> Iterator[IO[str]]:
    """Wrap the file for text in UTF-8, without changing line ends. It stays open."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    yield text
    text.detach()
