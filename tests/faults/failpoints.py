"""The workers' Celery application with faults at its seams: `celery -A tests.faults.failpoints:app worker`.

Production code knows nothing of this: the seams are its functions, wrapped from outside before the first
process is forked. What happens where is the plan's affair (`tests.faults.plan`), which is read anew at every
seam, so that one worker serves many trials.

| seam | when |
| --- | --- |
| `after pop` | a child has the message; nothing is claimed |
| `after claim` | the claim is committed |
| `after predict` | the outcomes are computed; nothing is written |
| `COPY` | the first outcomes are on their way to PostgreSQL, which waits for the next |
| `before COMMIT` | the outcomes are written in an open transaction |
| `after COMMIT` | the outcomes are committed |
| `after task` | the child has nothing left to do; the parent does not know it yet |
| `before ack` | the parent is about to acknowledge |
| `run claimed` | a trainer's child has claimed a training run |
| `epoch` | an epoch is written in an open transaction |
| `saved` | the trained model is in a temporary file, nowhere else |
| `to be stored` | its file is about to go into the store, also for the second time |
| `storing` | its bytes are in the store, not yet under their name |
| `stored` | its file is in the store; no row names it |
| `promoting` | verdict, promotion and the run's end are written in an open transaction |
| `promoted` | all that is committed |
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from tests.faults.plan import FOLDER_VARIABLE, STACK_SIGNAL, Plan

if os.environ.get("FAULT_CLASSIFIER") != "keras":
    from tests.faults import light

    sys.modules["worker.predicting.classifier"] = light

from celery.concurrency.asynpool import AsynPool
from sqlalchemy.engine import make_url

import jobs.ledger.jobs.claims
import jobs.ledger.jobs.results
import worker.celery_patches
import worker.learning.task
import worker.predicting.context
import worker.predicting.decode
import worker.reconciler
from jobs.errors import LeaseLost
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.storage.store import Store
from tests.faults.pictures import poison_of
from worker.app import app
from worker.predicting import pipeline

__all__ = ["app"]

# Where a test waits in vain, what this process is at can be asked for.
faulthandler.register(STACK_SIGNAL)

# The clockwork runs faster than in earnest, where nobody minds seconds: how often the reconciler looks, and
# how often Celery looks for children that died while it was not told. A test may do without the reconciler.
worker.reconciler.RECONCILE_SECONDS = float(os.environ.get("FAULT_RECONCILE_SECONDS", "0.5"))  # type: ignore[misc]
AsynPool.timers = property(lambda pool: {pool.maintain_pool: 0.5})

# The light classifier is so fast that one claim would take a whole job: then no fault could meet its middle.
worker.predicting.context.FIRST_CLAIM_IMAGES = worker.predicting.context.MAX_CLAIM_IMAGES = 32  # type: ignore[misc]

plan = Plan(Path(os.environ[FOLDER_VARIABLE]))

#: The parent of the pool: children inherit it, and it stays what it is when their parent is gone.
PARENT = os.getpid()


# ---- what can happen ----------------------------------------------------------------------------------


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_both() -> None:
    if os.getppid() == PARENT:  # or is the parent, or an orphan
        os.kill(PARENT, signal.SIGKILL)
    _kill()


@contextmanager
def _nobody_writing() -> Iterator[None]:
    """Nobody else has SQLite's only write lock: a process that stood still with it would hold up everybody,
    the test included, until it is woken. PostgreSQL ends such a transaction by itself.
    """
    url = Settings.load().ledger
    if make_url(url).get_backend_name() != "sqlite":
        yield
        return
    with closing(Ledger(url, pooled=False)) as ledger, ledger.transaction():
        yield


def _stop_both() -> None:
    """The whole worker stands still, as in a machine that is suspended. The test lets it go on."""
    with _nobody_writing():
        os.kill(PARENT, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


#: What a file may grow to on a disk that is full: less than any model takes.
_FULL_BYTES = 10_000


def _limit_files() -> None:
    """No file grows beyond a few kilobytes, as where a disk is full, until `_room_for_files` lifts it."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FULL_BYTES, most))


@contextmanager
def _room_for_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


_Actions = dict[str, Callable[[], None]]
_ACTIONS: _Actions = {
    "kill": _kill,
    "kill both": _kill_both,
    "stop both": _stop_both,
    "limit files": _limit_files,
}


def passing(seam: str) -> None:
    """Does what the plan has for this seam."""
    for rule in plan.due(seam):
        if rule.action.startswith("SIG"):
            os.kill(PARENT, signal.Signals[rule.action])
            time.sleep(rule.value)
        else:
            _ACTIONS[rule.action]()


# ---- a picture's order --------------------------------------------------------------------------------


def _obey(poison: str) -> None:
    """What a broken decoder would do."""
    if poison == "segfault":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif poison == "oom-kill":  # the kernel's answer to a process that has taken too much
        _kill()
    elif poison == "memory":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + 64 * 2**20, before[1]))
        try:
            bytearray(2**30)  # a real MemoryError
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    elif poison == "hang":  # in C, where no exception reaches: only the hard limit ends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM})
        ctypes.CDLL(None).sleep(600)
    elif poison == "slow":  # in Python: its own time ends it
        while True:
            pass
    elif poison == "bug":
        raise ZeroDivisionError("a mistake of the program")


# ---- the seams ----------------------------------------------------------------------------------------


def _wrap(module: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Puts a function, which gets the original first, in the place of `module.name`."""
    original = getattr(module, name)

    def put(wrapper: Callable[..., Any]) -> None:
        @wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        setattr(module, name, replaced)

    return put


@_wrap(pipeline, "classify_next")
def _task(original: Callable[..., int], *args: Any) -> int:
    passing("after pop")
    recorded = original(*args)
    passing("after task")
    return recorded


@_wrap(pipeline, "_claim")
def _claimed(original: Callable[..., Any], *args: Any) -> Any:
    claims = original(*args)
    if claims:
        passing("after claim")
    return claims


@_wrap(pipeline, "classify_images")
def _predicted(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    outcomes = original(*args, **kwargs)
    passing("after predict")
    return outcomes


@_wrap(pipeline, "record_results")
def _recording(original: Callable[..., Any], connection: Any, *args: Any) -> Any:
    try:
        recorded = original(connection, *args)
    except LeaseLost:
        plan.log("lease lost")
        raise
    passing("before COMMIT")
    return recorded


@_wrap(jobs.ledger.jobs.results, "_copy")
def _copying(original: Callable[..., None], *args: Any) -> None:
    *before, rows = args

    def watched() -> Iterator[Any]:
        for number, row in enumerate(rows):
            yield row
            if number == 0:
                passing("COPY")

    original(*before, watched())


@_wrap(pipeline, "_record")
def _written(original: Callable[..., Any], *args: Any) -> Any:
    recorded = original(*args)
    passing("after COMMIT")
    return recorded


@_wrap(worker.celery_patches.SlotFreeingRequest, "acknowledge")
def _acknowledging(original: Callable[..., None], *args: Any) -> None:
    passing("before ack")
    original(*args)


@_wrap(worker.predicting.decode, "decode")
def _decoding(original: Callable[..., Any], data: bytes, *args: Any) -> Any:
    if poison := poison_of(data):
        plan.log("poison", poison=poison)
        _obey(poison)
    return original(data, *args)


@_wrap(worker.learning.task, "_claim_run")
def _claimed_run(original: Callable[..., Any], *args: Any) -> Any:
    claim = original(*args)
    if claim is not None:
        passing("run claimed")
        _set_up_training()
    return claim


@functools.cache
def _set_up_training() -> None:
    """The seams of a training. TensorFlow comes with them, so they are made in the child."""
    from worker.learning import epochs, judge, record

    storing = False

    @_wrap(epochs, "add_epoch")
    def epoch(original: Callable[..., None], *args: Any) -> None:
        original(*args)
        passing("epoch")

    @_wrap(judge, "save")
    def saved(original: Callable[..., None], *args: Any) -> None:
        original(*args)
        passing("saved")

    @_wrap(os, "fsync")
    def syncing(original: Callable[..., None], *args: Any) -> None:
        if storing:
            passing("storing")
        original(*args)

    @_wrap(Store, "put")
    def stored(original: Callable[..., None], *args: Any) -> None:
        nonlocal storing
        storing = True
        try:
            with _room_for_files():
                passing("to be stored")
                original(*args)
        finally:
            storing = False
        passing("stored")

    @_wrap(record, "finish_run")
    def promoting(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        passing("promoting")

    @_wrap(record, "_conclude")
    def promoted(original: Callable[..., Any], *args: Any) -> Any:
        reason = original(*args)
        passing("promoted")
        return reason
