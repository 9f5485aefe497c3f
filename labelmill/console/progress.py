"""Show the progress of long work: a bar on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import time
from typing import Final, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from labelmill.console.terminal import err, say

#: Time between two lines if stderr is not a terminal.
_LINE_SECONDS: Final = 5.0

#: A terminal with fewer columns shows no bar: numbers and words say more.
_BAR_COLUMNS: Final = 100


class _Note(ProgressColumn):
    """The note at the end of the line. It alone is cut if there is not enough room."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


class ProgressLine:
    """The progress of one piece of work, whose total may be unknown or grow."""

    def __init__(self, what: str, *, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._note = ""
        self._said_at = time.monotonic()
        self._said: str | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                *([BarColumn()] if err.width >= _BAR_COLUMNS else []),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TimeElapsedColumn(table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                _Note(),
                console=err,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # If nothing was done, the bar disappears: the command says so in words.
        if self._bar is not None:
            self._bar.live.transient = not self._done
            self._bar.stop()
        elif kind is None and self._done:
            self._line()

    def update(self, done: int, *, total: int | None = None, note: str = "") -> None:
        """Record and show how much is done."""
        self._done = done
        self._total = total if total is not None else self._total
        self._note = note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=self._total, note=note)
        elif time.monotonic() - self._said_at >= _LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        of = f" of {self._total:,}" if self._total is not None else ""
        line = f"{self._what}: {self._done:,}{of}" + (f", {self._note}" if self._note else "")
        if line != self._said:
            say(line)
        self._said, self._said_at = line, time.monotonic()
