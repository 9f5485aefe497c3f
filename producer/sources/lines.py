"""Read paths from stdin, one per line, with one line in memory at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

from jobs.errors import SourceError

#: Far more than the longest path (4,096 bytes) or a signed URL.
MAX_LINE_BYTES: Final = 65_536

_FORMAT: Final = "stdin must be paths and URLs, one per line, such as `find photos -name '*.png'` prints"


def paths_on_stdin() -> Iterator[str] | None:
    """Return the lines of this process's stdin, or None if it is closed."""
    return None if sys.stdin is None else read_lines(sys.stdin.buffer)


def read_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines without their Unix or Windows line ends, decoded as Python decodes paths.

    Raises SourceError if the stream is not a list of paths.
    """
    number = 0
    # One byte more than the longest valid line with its end, so that a longer line is detected.
    while line := stream.readline(MAX_LINE_BYTES + 3):
        number += 1
        line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
        if b"\0" in line:
            raise SourceError(f"line {number} of stdin contains a NUL byte: {_FORMAT}")
        if len(line) > MAX_LINE_BYTES:
            raise SourceError(f"line {number} of stdin has more than {MAX_LINE_BYTES:,} bytes: {_FORMAT}")
        yield os.fsdecode(line)
