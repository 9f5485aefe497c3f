"""Processes, as Linux shows them in /proc: memory, processor time, and how to stop them for a while."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from jobs.ledger import Ledger

#: The parts of a side, and a function for the present processes of each.
Parts = dict[str, Callable[[], Collection[int]]]


def peak_kib(pid: int) -> int:
    """Return the process's peak memory (VmHWM), in KiB, since it began or `forget_peak`."""
    return _number(pid, "VmHWM")


def memory_kib(pid: int) -> int:
    """Return the memory that the process uses now (Pss), in KiB; 0 if it has ended.

    What it shares with other processes is divided among them, so the sum of several counts it once.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return _number(pid, "Pss", file="smaps_rollup")
    return 0


def forget_peak(pid: int) -> None:
    """Reset the process's peak memory to what it uses now."""
    (Path("/proc") / str(pid) / "clear_refs").write_text("5")


def processor_seconds(parts: Parts) -> dict[str, dict[int, float]]:
    """Return the seconds on a core of each process of each part, since it began."""
    return {part: {pid: _processor_seconds(pid) for pid in pids()} for part, pids in parts.items()}


def parent_of(pid: int) -> int:
    """Return the process that started it."""
    return _number(pid, "PPid")


def with_children(pid: int) -> list[int]:
    """Return the process, then its present children, whichever of its threads have started them."""
    found = [pid]
    for thread in (Path("/proc") / f"{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (thread / "children").read_text().split())
    return found


def child_with(*arguments: str) -> int:
    """Return the child of this process whose command line has these arguments, one after the other."""
    wanted = "\0".join(arguments).encode()
    for pid in with_children(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if wanted in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                return pid
    raise RuntimeError(f"no child of this process was started with {arguments}")


@contextlib.contextmanager
def standing_still(pids: Iterable[int], *, ledger: Ledger) -> Iterator[None]:
    """Stop the processes in the body of a `with`; they continue after it, still warm."""
    stopped: list[int] = []
    try:
        # SQLite has one writer at a time. While this transaction is open, none of the processes is writing.
        with ledger.transaction():
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)


def _processor_seconds(pid: int) -> float:
    """Return the processor time of the process's present threads; 0 if it has ended."""
    # To the nanosecond; what /proc/PID/stat says is in hundredths of a second.
    nanoseconds = 0
    for thread in (Path("/proc") / str(pid) / "task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            nanoseconds += int(thread.read_text().split()[0])
    return nanoseconds / 1e9


def _number(pid: int, name: str, *, file: str = "status") -> int:
    found = re.search(rf"^{name}:\s+(\d+)", (Path("/proc") / str(pid) / file).read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc says no {name} of process {pid}: it has ended, or this is not Linux")
    return int(found[1])
