"""What a command writes for its user: a file of this machine, an object behind a URL, or standard output."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import typer

from jobs.errors import Conflict, UserError
from jobs.remote import is_url, local_path, shown_url, writing_object

#: What `--output` calls standard output, as elsewhere `-` is standard input. A file of that name is `./-`.
STDOUT: Final = "-"


def output_option(help: str) -> Any:  # noqa: A002 -- as typer calls it
    """The option `--output` of a command: text, as a Path makes `s3:/` of `s3://`."""
    return typer.Option("--output", "-o", metavar="FILE", path_type=str, help=help)


@contextmanager
def opened(output: str, *, force: bool) -> Iterator[IO[bytes]]:
    """The file, the object or stdout, for writing. A file is there from the beginning, an object once it is
    whole.

    Raises Conflict where it is there already and `force` is not said, UserError where it cannot be had,
    Unavailable.
    """
    if output == STDOUT:
        yield sys.stdout.buffer
        # Here a reader that has gone, or a full disk, can still be told.
        sys.stdout.buffer.flush()
        return
    name = shown(output) or "''"
    try:
        path = local_path(output)
        if is_url(path):
            if path.partition("://")[0].lower() == "memory":
                raise ValueError("it names the memory of this command, which ends with it")
            with writing_object(path, over=force) as written:
                yield written
            return
        file = _open_file(Path(path), over=force)
    except FileExistsError:
        raise Conflict(f"{name} is there already: --force writes over it, --output names another.") from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        # What is in a bucket that is not there, for one, comes without words.
        untold = "Permission denied" if isinstance(error, PermissionError) else "No such file or directory"
        reason = error.strerror or untold
        raise UserError(f"{name} cannot be written ({reason}): --output names another.") from None
    except (ValueError, ImportError) as error:
        raise UserError(f"{name} cannot be written ({error}): --output names another.") from None
    with file:
        yield file


def shown(output: str) -> str:
    """Where it is written to, as it may be printed."""
    return shown_url(output) if is_url(output) else output


def _open_file(path: Path, *, over: bool) -> IO[bytes]:
    # A device or a pipe is there in any case, and loses nothing.
    over = over or (path.exists() and not path.is_file())
    return path.open("wb" if over else "xb")


@contextmanager
def as_text(file: IO[bytes]) -> Iterator[IO[str]]:
    """The same file for text: UTF-8, lines as they are given. It stays open."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    yield text
    text.detach()
