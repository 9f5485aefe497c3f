"""A Celery worker as it comes, for what Labelmill is compared with. It needs nothing of Labelmill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: How long a process may take to import TensorFlow and to load the model.
START_SECONDS: Final = 120.0

_READY: Final = "BENCHMARKS_READY"


def note_ready() -> None:
    """Note that this process of the worker is warm."""
    (Path(os.environ[_READY]) / str(os.getpid())).touch()


@contextmanager
def celery_worker(
    module: str, *, processes: int, folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the worker of the application in a module, whose processes call `note_ready`.

    Raises RuntimeError if it does not start.
    """
    ready, log = folder / "ready", folder / "celery.log"
    ready.mkdir(parents=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", module, "worker"),
                *("--concurrency", str(processes), "--loglevel", "warning"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            ],
            env={**os.environ, **environment, _READY: str(ready)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while len(list(ready.iterdir())) < processes:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Celery worker does not start: {log.read_text()[-1000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()
