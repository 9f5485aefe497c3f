"""The deaths of a worker's child processes: how many, of what, and the likely cause.

A child that dies is replaced at once. So a worker whose children all die, for example for lack of memory,
looks busy; only the number of deaths shows it.
"""

from __future__ import annotations

import re
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from jobs.ledger.counters import DEATHS
from jobs.ledger.workers import Problem

#: So many deaths within so many seconds are a problem. One image that kills its process causes two or three
#: deaths in a short time, and is then isolated.
MANY_DEATHS: Final = 5
DEATHS_SECONDS: Final = 300.0

#: Where the kernel counts the processes of this container that it killed for lack of memory: cgroup 2 and 1.
_OOM_COUNTS: Final = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)


class Deaths:
    """The recent deaths of one worker's children."""

    def __init__(self, oom_counts: Sequence[Path] = _OOM_COUNTS) -> None:
        """Remember how many processes the kernel has killed so far."""
        self._oom_counts = oom_counts
        self._oom_kills = count_oom_kills(oom_counts)
        self._oom_left = 0  # kills that the kernel has counted, but whose deaths were not added yet
        self._recent: deque[float] = deque()
        self._cause = ""

    def add(self, exit_codes: Sequence[int]) -> None:
        """Add the deaths of children that ended with these exit codes."""
        now = time.monotonic()
        self._recent.extend(now for _ in exit_codes)
        while self._recent and self._recent[0] < now - DEATHS_SECONDS:
            self._recent.popleft()
        if exit_codes:
            before, self._oom_kills = self._oom_kills, count_oom_kills(self._oom_counts)
            # If two are killed before the number is read, it includes the death that is added later.
            self._oom_left += self._oom_kills - before
            is_oom = self._oom_left > 0
            self._oom_left = max(0, self._oom_left - list(exit_codes).count(-signal.SIGKILL))
            self._cause = _cause(death_name(exit_codes[-1]), is_oom=is_oom)

    def problem(self) -> str | None:
        """Return what the children keep dying of and what to do, if many died in a short time."""
        return self._cause if len(self._recent) >= MANY_DEATHS else None


def _cause(name: str, *, is_oom: bool) -> str:
    more = "give it more memory, or run fewer processes"
    if name == "SIGKILL":
        if is_oom:
            return f"{Problem.MEMORY}: {more}"
        return f"{Problem.DEATHS}, killed by SIGKILL, perhaps for lack of memory: {more}"
    return f"{Problem.DEATHS}, the latest of {name}: its log says more"


def death_name(exit_code: int) -> str:
    """Return which of `DEATHS` this exit code means."""
    with suppress(ValueError):
        name = signal.Signals(-exit_code).name
        if name in DEATHS:
            return name
    return "other"


def count_oom_kills(files: Sequence[Path]) -> int:
    """Return how many processes of this container the kernel killed for lack of memory; 0 if unknown."""
    for file in files:
        with suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                return int(found[1])
    return 0
