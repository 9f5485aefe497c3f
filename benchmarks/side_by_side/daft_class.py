"""Daft: a class over the files' paths, with an instance in a process of its own for each core.

The instances read and decode the files themselves, so that all ways see the same pixels: Daft's own decoding
and resizing give different ones. Daft starts new processes for each query, so each pass includes a start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.side_by_side.protocol import Actor, Classify, Places, answer, batch_size, find_files


@contextmanager
def daft_class(places: Places) -> Iterator[Classify]:
    """Daft's native runner."""
    os.environ |= {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}
    import daft

    @daft.cls(max_concurrency=places.processes, use_process=True)
    class Classifier:
        """An actor in a process of its own."""

        def __init__(self, job_id: str) -> None:
            self._actor = Actor(places, job_id)

        @daft.method.batch(return_dtype=daft.DataType.float64(), batch_size=batch_size(places))
        def classify(self, index: Any, path: Any) -> Any:
            """Classify one batch of paths. Return when the instance was ready."""
            paths = path.to_pylist()
            self._actor.classify(index.to_pylist(), paths)
            return [self._actor.ready_at] * len(paths)

    def classify(folder: str, job_id: str) -> float:
        began = time.time()
        paths = find_files(folder)
        table = daft.from_pydict({"index": list(range(len(paths))), "path": paths})
        found = table.select(Classifier(job_id).classify(daft.col("index"), daft.col("path")).alias("ready"))
        return float(max(found.to_pydict()["ready"])) - began

    yield classify


if __name__ == "__main__":
    answer(daft_class)
