"""The progress line fits into one line of the terminal."""

from __future__ import annotations

import io
import re

import pytest

from labelmill.console import progress
from labelmill.console.terminal import Console

NOTE = "3 with an error, waiting for a worker: is `labelmill up` running?"


@pytest.mark.parametrize(("columns", "bar"), [(60, False), (80, False), (100, True), (160, True)])
def test_numbers_have_room_before_the_bar_and_the_note(
    monkeypatch: pytest.MonkeyPatch, columns: int, bar: bool
) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=columns, legacy_windows=False)
    monkeypatch.setattr(progress, "err", console)

    # When a long job is shown with a long note
    with progress.ProgressLine("submitting again", total=1_000_000) as line:
        line.update(123_456, note=NOTE)

    # Then the line has all its numbers, and leaves out what does not fit
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    last = [each for each in shown if each.strip()][-1]
    assert " 123456/1000000 0:00:0" in last
    assert len(last) <= columns
    assert ("\u2501" in last or "\u2578" in last) == bar
    assert (NOTE in last) == (columns == 160)
