"""What a classifying process has at hand: the ledger, the store and the models it used lately.

One per process, made after the fork: a database connection or a TensorFlow runtime that is inherited from
the parent hangs or corrupts.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self

from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT

from jobs.errors import ModelRefused, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.models import find_champion, get_model
from jobs.queue import Bell, make_app
from jobs.references import Roots
from jobs.registry import fetch_model
from jobs.settings import Settings
from jobs.store import Store
from jobs.traces import open_tracing
from worker.predicting.time_limit import showing_the_time_limit

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

logger = logging.getLogger(__name__)

#: Models kept loaded: the champion, the one before it, and one to compare them with.
MODELS_KEPT: Final = 3


def owner_name(pid: int) -> str:
    """How a process signs its claims."""
    return f"{socket.gethostname()}/{pid}"


@contextmanager
def _time_limit_later() -> Iterator[None]:
    """Celery's time limit, should it strike in here, strikes at the end. To be called from the main thread.

    Where it strikes in the middle of an import, a half of TensorFlow stays behind that cannot be imported
    again, and to that process no model is sound any more: job after job would fail by it.
    """
    frames: list[Any] = []
    strike = signal.signal(SIG_SOFT_TIMEOUT, lambda _, frame: frames.append(frame))
    try:
        yield
    finally:
        signal.signal(SIG_SOFT_TIMEOUT, strike)
    if frames and callable(strike):
        strike(SIG_SOFT_TIMEOUT, frames[0])


class Bench:
    """A process's tools."""

    def __init__(self, settings: Settings, *, processes: int) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.ledger)
        self.store = Store(settings.store)
        self.bell = Bell(make_app(settings))
        self.roots = Roots(settings.reference_roots)
        self.owner = owner_name(os.getpid())
        self.tracing = open_tracing("labelmill-worker")
        self._processes = processes
        self._classifiers: OrderedDict[str, Classifier] = OrderedDict()
        self._refused: set[str] = set()

    def classifier(self, model_id: str) -> Classifier:
        """The model, loaded and warm. Raises ModelRefused, NotFound, and Unavailable, also where this machine
        cannot keep or hold it.
        """
        if model_id in self._classifiers:
            self._classifiers.move_to_end(model_id)
            return self._classifiers[model_id]
        load = self._start_tensorflow().load
        with self.ledger.reading() as connection:
            model = get_model(connection, model_id)
        path = fetch_model(self.store, model, self.settings.cache_dir)
        classifier = load(path, model.classes, model.input_spec)
        classifier.warm_up()
        self._classifiers[model_id] = classifier
        if len(self._classifiers) > MODELS_KEPT:
            self._classifiers.popitem(last=False)
        return classifier

    def challenger(self, model_id: str) -> Classifier | None:
        """The model, loaded and warm; None, and a line in the log, where it is not to be had. One that is
        refused is not tried again by this process: loading takes its time. Raises nothing but what is the
        chunk's own: its time is up.
        """
        if model_id in self._refused:
            return None
        try:
            with showing_the_time_limit():  # Keras may have made another error of it
                return self.classifier(model_id)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # no job may fail by a model that is only tried
            logger.warning("challenger %s cannot be used: %s", model_id, str(error) or repr(error))
            if isinstance(error, ModelRefused):
                self._refused.add(model_id)
            return None

    def warm_up(self) -> None:
        """Starts TensorFlow, and loads the champion if there is one: no chunk need wait for them."""
        self._start_tensorflow()
        with self.ledger.reading() as connection:
            champion = find_champion(connection)
        if champion is not None:
            self.classifier(champion.id)

    def _start_tensorflow(self) -> type[Classifier]:
        """Imported here and nowhere earlier: it must never be in the parent of a fork. Raises Unavailable."""
        with _time_limit_later():
            try:
                from worker.predicting.classifier import Classifier, configure_threads
            except ImportError as error:  # of this worker's environment, and no image's fault
                raise Unavailable(f"TensorFlow cannot be imported by this worker: {error}") from error
        with suppress(RuntimeError):  # TensorFlow already computes here, and keeps the threads it has
            configure_threads(self._processes)
        if not self._classifiers:
            # What TensorFlow is made of stays: 400,000 objects, which Python looks through for garbage now
            # and then, for a quarter of a second. No model is among them: one that is dropped must go.
            gc.freeze()
        return Classifier

    def close(self) -> None:
        """Gives the connections back, and sends the last spans."""
        self.ledger.close()
        self.bell.close()
        if self.tracing is not None:
            self.tracing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
