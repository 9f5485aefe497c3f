"""Ray Data: `map_batches` over the files' paths, with an actor that holds the model for each core.

The actors read the files themselves: separate reading tasks (`read_binary_files`) would carry every image
through the object store. Ray starts new actors for each data set, so each pass includes a start. With
`wait_for_min_actors_s` no batch begins before all actors are up, which separates the start from the work.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from benchmarks.side_by_side.protocol import Actor, Classify, Places, answer, batch_size, find_files

#: Far longer than an actor takes to import TensorFlow.
_START_SECONDS: Final = 120


class Classifier(Actor):
    """An actor of Ray."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One batch of paths; what goes on to the next stage is one row that says when the actor was up."""
        import numpy as np

        self.classify(batch["index"].tolist(), batch["path"].tolist())
        return {"ready_at": np.array([self.ready_at])}


@contextmanager
def ray_data(places: Places) -> Iterator[Classify]:
    """A cluster of this machine alone, without its dashboard."""
    # Nothing is sent anywhere, and no token is written into somebody's home folder.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    import ray
    import ray.data

    ray.init(
        num_cpus=places.processes, include_dashboard=False, log_to_driver=False, _temp_dir=places.scratch
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = _START_SECONDS

    def classify(folder: str, job_id: str) -> float:
        began = time.time()
        paths = [{"index": index, "path": path} for index, path in enumerate(find_files(folder))]
        batch = batch_size(places)
        done = (
            ray.data.from_items(paths, override_num_blocks=math.ceil(len(paths) / batch))
            .map_batches(
                Classifier,
                fn_constructor_args=(places, job_id),
                batch_size=None,  # a block is a batch, and none is cut in two
                compute=ray.data.ActorPoolStrategy(size=places.processes),
            )
            .take_all()
        )
        return float(max(each["ready_at"] for each in done)) - began

    try:
        yield classify
    finally:
        ray.shutdown()


if __name__ == "__main__":
    answer(ray_data)
