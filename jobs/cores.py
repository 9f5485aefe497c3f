"""The number of cores that a process may use, within its machine or container."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

#: Linux's CPU limit of a container: quota and period, in microseconds.
_CONTAINER_CORES: Final = Path("/sys/fs/cgroup/cpu.max")


def threads_per_process(processes: int) -> int:
    """Return how many threads one of so many processes may use, which share the cores."""
    return max(1, usable_cores() // processes)


def usable_cores() -> int:
    """Return how many cores this process may use. A fraction of a core counts as one.

    They are fewer than the machine has if the process's affinity or its container limits them.
    """
    # macOS has no sched_getaffinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CONTAINER_CORES.read_text().split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, not Linux, or no limit ("max")
        return cores
