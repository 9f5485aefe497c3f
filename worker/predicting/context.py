"""A worker process's resources: the ledger, the store, the broker, and the models that it used last.

Each process creates its context after the fork, because a database connection or a TensorFlow runtime that is
inherited from the parent hangs or corrupts data.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self

from billiard.exceptions import SoftTimeLimitExceeded

from jobs.cores import threads_per_process
from jobs.errors import LabelmillError, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import Served, is_served
from jobs.ledger.learning.models import champions, get_model
from jobs.ledger.learning.runtimes import list_runtimes
from jobs.ledger.workers import Problem, owner_name, report_model_problem
from jobs.models.model import Model
from jobs.models.runtime import ModelRuntime, Runtime, RuntimeState, installed_runtimes
from jobs.network.references import Roots
from jobs.queue import Publisher, make_app
from jobs.settings import Settings
from jobs.storage.artefacts import fetch_artefact
from jobs.storage.payloads import Payload, read_payload
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store
from jobs.traces import open_tracing
from worker.time_limit import time_limit_deferred

if TYPE_CHECKING:
    from jobs.ledger.jobs.claims import Claim
    from worker.predicting.classifier import Classifier

logger = logging.getLogger(__name__)

#: Models kept loaded: for example the champion, the previous champion, and a challenger.
MODELS_KEPT: Final = 3

#: While Keras serves a model, a process looks this often for a quicker runtime, because a new champion is
#: compiled after its promotion.
LOOK_AGAIN_SECONDS: Final = 60.0

#: The work that a claim covers. It is short, because nothing interrupts a claim, and other jobs wait for it.
CLAIM_SECONDS: Final = 0.5

#: A claim covers more work, up to the maximum, if claiming and recording would take a larger share of its
#: time: they wait for other processes and for the ledger's lock, however few images a claim has.
LEDGER_SHARE: Final = 0.2
MAX_CLAIM_SECONDS: Final = 2.0

#: Maximum images per claim for a model of any speed, and for one whose speed is not known yet.
MAX_CLAIM_IMAGES: Final = 16_384
FIRST_CLAIM_IMAGES: Final = 64

#: Images per claim are a multiple of the smallest batch, because a padded batch takes as long as a full one.
#: Fewer images are not used to measure a model's speed.
SMALLEST_BATCH: Final = 32

#: Threads that fetch references: they mostly wait for a server.
FETCH_THREADS: Final = 16


class WorkerContext:
    """The resources of one process."""

    def __init__(self, settings: Settings, *, processes: int) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.ledger)
        self.store = Store(settings.store)
        self.publisher = Publisher(make_app(settings))
        self.roots = Roots(settings.reference_roots, settings.private_hosts)
        self.owner = owner_name(os.getpid())
        self.tracing = open_tracing("labelmill-worker")
        #: While it is true, nothing is claimed (`worker.predicting.free_space`).
        self.ledger_is_full = False
        installed = installed_runtimes()
        self._runtimes = [each for each in installed if settings.runtime in (None, each)]
        #: The models that this worker can serve; None if it can serve all.
        self.served = None if Runtime.KERAS in installed else Served(self._runtimes)
        #: Those whose chunks it has left to others (`worker.predicting.slim`).
        self.models_left: set[str] = set()
        self._processes = processes
        self._classifiers: OrderedDict[str, Classifier] = OrderedDict()
        self._look_again: dict[str, float] = {}  # when, by the id of a model that Keras serves
        self._unusable: set[tuple[str, ModelRuntime]] = set()  # by the model's id
        self._image_seconds: dict[str, float] = {}
        self._ledger_seconds = 0.0  # of the last claim
        self._last_payload: tuple[str, Payload] | None = None
        self._not_loaded: dict[str, str] = {}  # why, by the champion's id
        self._reported_problem: str | None = ""  # unknown: an earlier process may have reported one

    def images_per_claim(self, model_id: str) -> int:
        """Return the maximum images of this model per claim, from what this process has measured."""
        seconds = self._image_seconds.get(model_id)
        if seconds is None:
            return FIRST_CLAIM_IMAGES
        work = self._ledger_seconds * (1 - LEDGER_SHARE) / LEDGER_SHARE
        work = min(max(work, CLAIM_SECONDS), MAX_CLAIM_SECONDS)
        images = int(work / seconds) // SMALLEST_BATCH * SMALLEST_BATCH
        return min(max(images, SMALLEST_BATCH), MAX_CLAIM_IMAGES)

    def record_speed(self, model_id: str, images: int, seconds: float) -> None:
        """Record how long this process took to classify `images` images of this model.

        Only images that it has classified count: with others, it would seem faster than it is.
        """
        if images >= SMALLEST_BATCH:
            self._image_seconds[model_id] = max(seconds / images, 1e-9)

    def record_ledger_time(self, seconds: float) -> None:
        """Record how long this process took to claim a chunk and to record its results."""
        self._ledger_seconds = seconds

    def record_time_out(self, model_id: str, images: int, seconds: float) -> None:
        """Record that `images` images took longer than `seconds`, so that the next claim has fewer."""
        self._image_seconds[model_id] = max(self._image_seconds.get(model_id, 0.0), seconds / images)

    def payload(self, claim: Claim) -> Payload:
        """Return the names and contents of the claim's images. Raises PayloadDamaged, Unavailable.

        The last payload is cached, because the rest of a chunk that was cut is usually claimed next.
        """
        last = self._last_payload  # a copy, because other threads may read payloads, too
        if last is None or last[0] != claim.payload:
            payload = read_payload(self.store, claim.payload, claim.payload_digest)
            self._last_payload = last = claim.payload, payload
        return last[1].part(claim.payload_offset, claim.images)

    @cached_property
    def fetchers(self) -> ThreadPoolExecutor:
        """Return the threads that fetch references, cached because fsspec keeps a connection per thread."""
        return ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")

    def drop_fetchers(self) -> None:
        """Abandon the threads, which may wait for a server for ever. The next claim gets new ones."""
        if "fetchers" in self.__dict__:
            self.fetchers.shutdown(wait=False, cancel_futures=True)
            del self.fetchers

    def classifier(self, model_id: str) -> Classifier:
        """Return the model, loaded and warm.

        Raises ModelRefused, NotFound, or Unavailable, also if this machine has no room for the model.
        """
        loaded = self._classifiers.get(model_id)
        if loaded is not None and time.monotonic() < self._look_again.get(model_id, math.inf):
            self._classifiers.move_to_end(model_id)
            return loaded
        with self.ledger.reading() as connection:
            model = get_model(connection, model_id)
            runtimes = list_runtimes(connection, model_id)
        classifier = self._load_quicker(model, runtimes)
        if classifier is not None:
            self._look_again.pop(model_id, None)
        else:
            self._look_again[model_id] = time.monotonic() + LOOK_AGAIN_SECONDS
            if loaded is not None:
                return loaded
            if self.served is not None:
                self.served.broken.update(each.sha256 for each in runtimes if each.sha256 is not None)
                raise Unavailable(
                    f"Model {model.id} cannot be served without TensorFlow: run `labelmill models compile "
                    f"{model.id}`, or start a worker with the extra 'worker'."
                )
            path = fetch_model(self.store, model, self.settings.cache_dir)
            classifier = self._keras.load(path, model.classes, model.input_spec, logits=model.logits)
            classifier.warm_up()
        self._classifiers[model_id] = classifier
        self._classifiers.move_to_end(model_id)
        if self._not_loaded:
            with self.ledger.reading() as connection:
                still = {champion.id for champion in champions(connection)} - {model_id}
            self._not_loaded = {id_: why for id_, why in self._not_loaded.items() if id_ in still}
            self._report_problem()
        if len(self._classifiers) > MODELS_KEPT:
            self._classifiers.popitem(last=False)
        return classifier

    def _load_quicker(self, model: Model, runtimes: Sequence[ModelRuntime]) -> Classifier | None:
        """Return the model in the quickest runtime that passed, loaded and warm, or None if that is Keras.

        A runtime that is not installed, is not the one that this worker was told to use, or cannot load the
        model is left out. Raises Unavailable.
        """
        with time_limit_deferred():
            from worker.predicting.classifier import Classifier
            from worker.predicting.networks.loading import load_network

        threads = threads_per_process(self._processes)
        for each in runtimes:
            if each.state is not RuntimeState.PASSED or each.runtime not in self._runtimes:
                continue
            if each.runtime is Runtime.KERAS:
                break
            if (model.id, each) in self._unusable:
                continue
            try:
                data = fetch_artefact(self.store, each, self.settings.cache_dir).read_bytes()
                with time_limit_deferred():
                    network = load_network(each.runtime, data, threads)
                classifier = Classifier(network, model.classes, model.input_spec)
                classifier.warm_up()
            except (SoftTimeLimitExceeded, Unavailable):
                raise
            except Exception as error:
                self._unusable.add((model.id, each))
                logger.warning("model %s cannot be used with %s: %s", model.id, each.runtime, error)
            else:
                return classifier
        return None

    def warm_up(self) -> None:
        """Load the champions, so that no chunk has to wait for them.

        If there are more than are kept loaded, load those of the datasets that were used last. A champion
        that cannot be loaded is left out.
        """
        with self.ledger.reading() as connection:
            in_use = champions(connection)
            if self.served is not None:
                in_use = [each for each in in_use if is_served(connection, each.id, self.served)]
        for champion in in_use[:MODELS_KEPT]:
            try:
                self.classifier(champion.id)
            except LabelmillError as error:
                problem = f"{Problem.MODEL} of dataset {champion.dataset} was not loaded: {error}"
                self._not_loaded[champion.id] = problem
                logger.warning("%s", problem)
        self._report_problem()

    def _report_problem(self) -> None:
        """Write into the worker's row why champions cannot be loaded. Raises Unavailable."""
        problem = next(iter(self._not_loaded.values()), None)
        if problem != self._reported_problem:
            with self.ledger.transaction() as connection:
                report_model_problem(connection, owner_name(os.getppid()), problem)
            self._reported_problem = problem

    @cached_property
    def _keras(self) -> type[Classifier]:
        """The classifier's class, with TensorFlow imported. Raises Unavailable.

        The import is here because the parent of a fork must not import TensorFlow, and because it takes
        seconds and memory that models in other runtimes do not need.
        """
        with time_limit_deferred():
            try:
                from worker.predicting.classifier import Classifier, start_keras

                start_keras(self._processes)
            except ImportError as error:  # a fault of this worker's environment, not of an image
                raise Unavailable(
                    f"This worker cannot import TensorFlow ({error}): install Labelmill with its extra "
                    "'worker' again."
                ) from error
        # TensorFlow's 400,000 objects live as long as the process, and each full garbage collection of
        # them takes a quarter of a second. Models are loaded after the freeze, so they are collected.
        gc.freeze()
        return Classifier

    def close(self) -> None:
        """Close the connections, and send the last spans."""
        self.ledger.close()
        self.publisher.close()
        self.drop_fetchers()
        self.tracing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_context: WorkerContext | None = None


def process_context(settings: Settings, processes: int) -> WorkerContext:
    """Return this process's context; create it at the first call."""
    global _context
    if _context is None:
        _context = WorkerContext(settings, processes=processes)
    return _context


def close_process_context() -> None:
    """Close this process's context if there is one."""
    global _context
    if _context is not None:
        _context.close()
        _context = None
