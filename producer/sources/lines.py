"""Paths on stdin, one a line: bytes as the file system has them, and never more than a line in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

from jobs.errors import SourceError

#: Far above the longest path there is (4,096 bytes), and above a URL with a signature.
MAX_LINE_BYTES: Final = 65_536

_WANTED: Final = "stdin must be paths and URLs, one a line, such as `find photos -name '*.png'` prints"


def paths_on_stdin() -> Iterator[str] | None:
    """The lines of this process's stdin; None where it is closed."""
    return None if sys.stdin is None else read_lines(sys.stdin.buffer)


def read_lines(stream: BinaryIO) -> Iterator[str]:
    """The lines, without what ends them, of Unix or of Windows. Bytes that are no UTF-8 are what Python makes
    of them in paths. Raises SourceError where the stream is no list of paths.
    """
    number = 0
    # One byte more than a line may have, with what ends it.
    while line := stream.readline(MAX_LINE_BYTES + 3):
        number += 1
        line = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
        if b"\0" in line:
            raise SourceError(f"line {number} of stdin holds a NUL, as no path does: {_WANTED}")
        if len(line) > MAX_LINE_BYTES:
            raise SourceError(f"line {number} of stdin has more than {MAX_LINE_BYTES:,} bytes: {_WANTED}")
        yield os.fsdecode(line)
