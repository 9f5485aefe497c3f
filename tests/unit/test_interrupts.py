"""Ctrl-C ends a command, even inside an object's finalizer."""

from __future__ import annotations

import subprocess

import pytest

from tests.programs import run_python

#: A program that gets a signal on the last line of an object's `__del__`, and then sleeps.
PROGRAM = """
import os, signal, sys, time
from labelmill.cli import repeat_lost_interrupts
{before}
class Connection:
    def __del__(self):
        {at_the_end}
Connection()
try:
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_ctrl_c_is_not_lost_at_the_end_of_an_object(signal: str) -> None:
    # Given our handling of lost interrupts, and SIGTERM that raises like Ctrl-C, as in a stack
    before = "repeat_lost_interrupts(); signal.signal(signal.SIGTERM, signal.default_int_handler)"
    # When the signal arrives where Python discards exceptions, then the program ends, and prints nothing.
    done = run(before, f"os.kill(os.getpid(), signal.{signal})")
    assert (done.returncode, done.stderr) == (130, "")


def test_other_losses_are_told_as_ever() -> None:
    done = run("repeat_lost_interrupts(); signal.alarm(1)", "1 / 0")
    assert "Exception ignored in" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert done.returncode == -14, "it was not told to end, and the alarm rang"


def run(before: str, at_the_end: str) -> subprocess.CompletedProcess[str]:
    return run_python(PROGRAM.format(before=before, at_the_end=at_the_end), check=False)
