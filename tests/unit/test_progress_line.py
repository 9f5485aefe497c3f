"""The line that shows how far long work is, on a terminal."""

from __future__ import annotations

import io
import re

import pytest

from labelmill import progress
from labelmill.console import Console

NOTE = "3 with an error, waiting for a worker: is `labelmill up` running?"


@pytest.mark.parametrize(("columns", "bar"), [(60, False), (80, False), (100, True), (160, True)])
def test_numbers_have_room_before_the_bar_and_the_note(
    monkeypatch: pytest.MonkeyPatch, columns: int, bar: bool
) -> None:
    # Given a terminal
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=columns, legacy_windows=False)
    monkeypatch.setattr(progress, "err", console)

    # When much is done, with much to say
    with progress.ProgressLine("submitting again", total=1_000_000) as line:
        line.update(123_456, note=NOTE)

    # Then it is one line, with all its numbers, and what has no room is left out
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    last = [each for each in shown if each.strip()][-1]
    assert " 123456/1000000 0:00:0" in last
    assert len(last) <= columns
    assert ("\u2501" in last or "\u2578" in last) == bar
    assert (NOTE in last) == (columns == 160)
