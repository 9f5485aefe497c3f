"""How much memory one input takes at the most: run as a program, in a process of its own.

    python -m tests.faults.appetite image|archive PATH...

Prints a line for each path: how many bytes the process had grown by at its largest, and what came out.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from jobs.errors import LabelmillError
from jobs.models.model import MNIST_INPUT
from producer.sources import Sources
from worker.predicting.decode import decode


def _memory(field: str) -> int:
    """In bytes. VmRSS: what the process has now; VmHWM: the most it had since it was last asked to forget."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _forget_the_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _decode(path: str) -> str:
    decode(Path(path).read_bytes(), MNIST_INPUT)
    return "pixels"


def _read(path: str) -> str:
    return f"{sum(1 for _ in Sources([path]))} images"


def main() -> None:
    """See the module."""
    kind, *paths = sys.argv[1:]
    take = {"image": _decode, "archive": _read}[kind]
    for path in paths:
        gc.collect()
        before = _memory("VmRSS")
        _forget_the_most()
        try:
            outcome = take(path)
        except LabelmillError as error:
            outcome = str(getattr(error, "code", type(error).__name__))
        sys.stdout.write(f"{_memory('VmHWM') - before} {outcome} {path}\n")


if __name__ == "__main__":
    main()
