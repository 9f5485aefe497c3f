"""A worker without TensorFlow: it leaves the chunks of models that only Keras can serve to other workers.

It gets wake-ups for these chunks, too, because a message names no chunk. It passes them on.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from jobs.ledger.jobs.claims import Served, models_left
from worker.predicting.context import WorkerContext

logger = logging.getLogger(__name__)

#: The pause after a wake-up was passed on. Without it, idle workers without TensorFlow would pass one around
#: at full speed.
PAUSE_SECONDS: Final = 1.0


def pass_wake_up_on(context: WorkerContext, served: Served) -> None:
    """Pass a wake-up on if chunks are due that this worker leaves to others, then pause.

    Log each model of such chunks once. Raises Unavailable.
    """
    with context.ledger.reading() as connection:
        models = models_left(connection, served)
    if not models:
        return
    for model in sorted(set(models) - context.models_left):
        logger.warning(
            "chunks of model %s are left to workers with TensorFlow, because it cannot be served here: run "
            "`labelmill models compile %s`, or start a worker with the extra 'worker'",
            model,
            model,
        )
    context.models_left.update(models)
    context.publisher.reset().wake_up()
    time.sleep(PAUSE_SECONDS)
