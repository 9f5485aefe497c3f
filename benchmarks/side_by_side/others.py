"""The other ways, each in a process: start it, send it orders, end it.

The other end of the pipe is `benchmarks.side_by_side.protocol`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from benchmarks.side_by_side.protocol import Places

ROOT: Final = Path(__file__).parents[2]

#: Seconds that a way may take to end.
_STOP_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Way:
    """Another way to classify images."""

    name: str
    package: str  # that it needs beside the project's
    command: tuple[str, ...]  # what follows `python -m`: a module, and its arguments after the places
    images: int | None = None  # the most it is measured with; None: all of them


WAYS: Final = (
    Way("Celery, one task per image", "celery", ("celery_way", "one"), 2_000),
    Way("celery-batches", "celery-batches", ("celery_way", "batches"), 10_000),
    Way("Ray Data, map_batches", "ray", ("ray_data",)),
    Way("Keras, predict over tf.data", "tensorflow", ("keras_predict",)),
)


class Took(NamedTuple):
    """Seconds of one order."""

    start: float  # before the work, if the way starts each time
    work: float


class Other:
    """Run a way that waits with its model loaded, as a context manager."""

    def __init__(self, way: Way, python: Path, places: Places) -> None:
        self._way = way
        self._command = [str(python.absolute()), "-m", f"{__package__}.{way.command[0]}", places.to_json()]
        self._command += way.command[1:]
        self._log = Path(places.scratch) / "log"
        self._process: subprocess.Popen[str] | None = None
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        """Start the way. Raises RuntimeError if it does not start."""
        began = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                start_new_session=True,  # Ctrl-C is for us, and its children end with it
            )
        try:
            self._answer()
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def classify(self, folder: Path, job_id: str) -> Took:
        """Classify all images below the folder, once. Raises RuntimeError if the way dies."""
        assert self._process is not None
        assert self._process.stdin is not None
        began = time.perf_counter()
        self._process.stdin.write(json.dumps({"folder": str(folder), "job_id": job_id}) + "\n")
        start = float(self._answer()["start"])
        return Took(start, time.perf_counter() - began - start)

    def stop(self) -> None:
        """End the way and all processes that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"{self._way.name} died; its last lines:\n{last}")
        return json.loads(line)
