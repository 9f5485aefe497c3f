"""Processes, as Linux shows them in /proc: peak memory, time on a core, and how to hold them still."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from jobs.ledger import Ledger


def peak_kib(pid: int) -> int:
    """The most memory that the process had in use (VmHWM), in KiB, since it began or `forget_peak`."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """From here on, only what the process has in use from here on counts."""
    (Path("/proc") / str(pid) / "clear_refs").write_text("5")


def processor_seconds(pid: int) -> float:
    """How long the process's threads have been on a core since they began: of those that are there now. None
    are where it has ended.
    """
    # To the nanosecond; what /proc/PID/stat says is in hundredths of a second.
    nanoseconds = 0
    for thread in (Path("/proc") / str(pid) / "task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            nanoseconds += int(thread.read_text().split()[0])
    return nanoseconds / 1e9


def named(name: str) -> list[int]:
    """The processes of that name that are there now, as the kernel has it: its first fifteen characters."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (process / "comm").read_text().rstrip() == name:
                found.append(int(process.name))
    return found


def parent_of(pid: int) -> int:
    """The process that started it."""
    return _status(pid, "PPid")


def with_children(pid: int) -> list[int]:
    """The process, and behind it those that it started and that are there now."""
    children = (Path("/proc") / f"{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


@contextlib.contextmanager
def standing_still(pids: Iterable[int], *, ledger: Ledger) -> Iterator[None]:
    """Inside it the processes do nothing; after it they go on, as warm as they were."""
    stopped: list[int] = []
    try:
        # Whoever writes to SQLite keeps all others from writing. While we do, none of these does.
        with ledger.transaction():
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", (Path("/proc") / str(pid) / "status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc says no {name} of process {pid}: it has ended, or this is not Linux")
    return int(found[1])
