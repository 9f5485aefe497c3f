"""The task of `benchmarks.plain_worker`, which only its processes import: from a path to a transaction.

It decodes with the pipeline's code, and asks the model as Keras's guide says for single images: by a call.
No claims, no leases, no errors expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.signals import worker_process_init

from benchmarks.harness.celery_worker import note_ready
from benchmarks.plain_worker import TASK, make_app
from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion
from jobs.schema import JobState, db_now, jobs, predictions
from jobs.settings import Settings
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

settings = Settings.load()
app = make_app(settings)


class _Tools:
    """A process's resources, made after the fork."""

    def __init__(self) -> None:
        import numpy as np

        from worker.predicting.tensorflow_runtime import configure_threads, keras

        configure_threads(settings.processes)
        self.ledger = Ledger(settings.ledger)
        with self.ledger.reading() as connection:
            champion = find_champion(connection)
        assert champion is not None
        self.classes, self.spec = champion.classes, champion.input_spec
        self._model: Any = keras.saving.load_model(
            fetch_model(Store(settings.store), champion, settings.cache_dir), compile=False
        )
        self.scores(np.zeros(self.spec.shape, np.uint8))

    def scores(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probability of each class, for one image."""
        answer: npt.NDArray[np.float32] = self._model(pixels[None], training=False).numpy()[0]
        return answer


_tools: _Tools | None = None


@worker_process_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def _warm_up(**_: Any) -> None:
    global _tools
    _tools = _Tools()
    note_ready()


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def classify(job_id: str, path: str) -> None:
    """Classify one image, from its path to its row."""
    from worker.predicting.decode import decode

    tools = _tools
    assert tools is not None
    scores = tools.scores(decode(Path(path).read_bytes(), tools.spec))
    best = int(scores.argmax())
    row = {"job_id": job_id, "index": 0, "name": path, "label": tools.classes[best]}
    done = jobs.update().where(jobs.c.id == job_id)
    with tools.ledger.transaction() as connection:
        connection.execute(predictions.insert(), row | {"confidence": float(scores[best])})
        connection.execute(done.values(succeeded=1, state=JobState.DONE, finished_at=db_now()))
