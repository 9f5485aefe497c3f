"""The local stack: told to stop at any moment, it stops."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: A stack that is told to stop in the middle of the fork of its first process.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from jobs.settings import Settings
from labelmill.stack import Stack

home, number = Path(sys.argv[1]), int(sys.argv[2])
sent = []

def send_once():
    if not sent:
        sent.append(True)
        os.kill(os.getpid(), number)

os.register_at_fork(after_in_parent=send_once)
try:
    with Stack(Settings.load(home=home), logs=home / "logs", worker=False):
        print("goes on")
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_in_the_middle_of_a_fork_is_not_lost(short_folder: Path, number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(short_folder / "home"), str(number)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "stopped\n", done.stderr


def test_the_processes_of_a_stack_can_be_told_to_stop(short_folder: Path) -> None:
    """What is held back around the fork is not held back in them."""
    from jobs.settings import Settings
    from labelmill.stack import Stack

    with Stack(Settings.load(home=short_folder / "home"), logs=short_folder / "logs", worker=False) as stack:
        [broker] = [service.process for service in stack._services]
        assert broker is not None
        broker.terminate()
        assert broker.wait(30) == 0
