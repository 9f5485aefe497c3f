"""Lower the priority of a process that would take all cores."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

#: Linux lets ordinary users change only one session on the machine in a tenth of a second: who comes too
#: early can only try again.
_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.1


def give_way(niceness: int) -> None:
    """Make this process and its children give way to others. It must have begun a session of its own."""
    os.nice(niceness)
    # Linux may share the cores between sessions first, and only then look at a process: sched(7), autogroup.
    for _ in range(_ATTEMPTS):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
        except BlockingIOError:  # somebody else changed a session just now
            time.sleep(_PAUSE_SECONDS)
        except OSError:  # the program starts all the same
            return
        else:
            return
