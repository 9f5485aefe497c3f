"""Work in processes that kill themselves at a step: the first at the first step, the second at the second.

A step is the beginning or the end of an fsync, a rename, a write into the store or a transaction, and each
COMMIT. For each line on stdin, a process is forked that does the work for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.storage.store import Store

_left = 0


# ---- the test's side ----------------------------------------------------------------------------------


@contextmanager
def killed_at_each_step(
    program: str, *arguments: str | Path, settings: Settings
) -> Iterator[Callable[[str], bool]]:
    """Run a program that calls `serve`.

    Yield a function that has the work for a line done, up to one step further each time, and returns whether
    its process was killed.
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | settings.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def work(line: str) -> bool:
            stdin.write(f"{line}\n")
            stdin.flush()
            outcome = stdout.readline().strip()
            assert outcome in ("killed", "ended 0")
            return outcome == "killed"

        yield work
        stdin.close()


# ---- the program's side -------------------------------------------------------------------------------


def serve(work: Callable[[str], object]) -> None:
    """For each line, do the work in a process that may kill itself, and print whether it did.

    The work calls `begin_steps`. No connection may be open yet, because the processes are forked.
    """
    global _left
    for _left, line in enumerate(sys.stdin, 1):
        pid = os.fork()
        if pid == 0:
            work(line.strip())
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print("killed" if os.WIFSIGNALED(status) else f"ended {status}", flush=True)  # noqa: T201


def begin_steps(*more: tuple[Any, str]) -> None:
    """Count the steps from here on; those of `more`, functions named with their owner, too."""
    for owner, name in ((os, "fsync"), (Path, "rename"), (Store, "put"), *more):
        _count_calls(owner, name)
    transaction = Ledger.transaction

    @contextmanager
    def counted(*arguments: Any, **named: Any) -> Iterator[Any]:
        _step()
        with transaction(*arguments, **named) as connection:
            yield connection
            _step()  # before COMMIT
        _step()

    Ledger.transaction = counted  # type: ignore[method-assign, assignment]


def _count_calls(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        _step()
        result = original(*arguments, **named)
        _step()
        return result

    setattr(owner, name, counted)


def _step() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
