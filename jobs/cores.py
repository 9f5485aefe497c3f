"""How many cores a process may use: of its machine, or of the container that it is in."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

#: Where Linux says how much of the processors a container may use: microseconds, of so many microseconds.
_CONTAINER_CORES: Final = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Those this process may run on: fewer than the machine has where it is confined to some, or where its
    container has a limit. A part of a core counts as one.
    """
    # Not on macOS.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CONTAINER_CORES.read_text().split()
        return min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, not on Linux, or "max"
        return cores
