"""A worker that is told to stop ends, even if Celery itself hangs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from billiard.pool import EX_FAILURE, EX_RECYCLE

from tests.programs import run_python

#: A process in which Celery's cold shutdown never ends, with our limit on it.
PROGRAM = """
import os, signal, sys, time
import celery.apps.worker as celery_worker
import worker.celery_patches

def wait_for_ever(_worker):
    print("stopping", flush=True)
    while True:
        time.sleep(1)

class Worker:
    hostname = "worker@here"

celery_worker.on_cold_shutdown = wait_for_ever
worker.celery_patches.COLD_SHUTDOWN_SECONDS = 1
worker.celery_patches.limit_cold_shutdown()
if sys.argv[1] == "SIGQUIT":
    celery_worker.install_worker_term_hard_handler(Worker())
else:
    celery_worker.install_worker_int_handler(Worker())
    os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.Signals[sys.argv[1]])
time.sleep(60)
"""


@pytest.mark.parametrize("signal_name", ["SIGQUIT", "SIGINT"])
def test_a_cold_shutdown_that_hangs_ends_all_the_same(signal_name: str) -> None:
    # Given a worker whose cold shutdown hangs, when it gets SIGQUIT, or a second SIGINT
    done = run_python(PROGRAM, signal_name, check=False)
    # Then the shutdown had begun, and the process is gone.
    assert "stopping" in done.stdout, done.stderr
    assert done.returncode == -signal.SIGALRM


#: A worker that fails, and then waits for ever for its children.
FAILING = """
import time
from celery.worker import WorkController
import worker.celery_patches

class Blueprint:
    state = 1

    def start(self, worker):
        raise RuntimeError("the broker is full")

    def stop(self, worker, terminate):
        print("stopping", flush=True)
        time.sleep(60)

worker.celery_patches.FAILED_SHUTDOWN_SECONDS = 1
worker.celery_patches.limit_failed_shutdown()
failing = object.__new__(WorkController)
failing.blueprint = Blueprint()
failing.pool = None
failing.start()
"""


def test_a_worker_that_failed_and_cannot_stop_ends_all_the_same() -> None:
    done = run_python(FAILING, check=False)
    assert "stopping" in done.stdout, done.stderr
    assert done.returncode == -signal.SIGALRM


#: Celery's event loop, idle for ten seconds, and a SIGTERM meanwhile.
LOOP = """
import os, signal, socket, threading, time
import celery.apps.worker as celery_worker
from celery.exceptions import WorkerShutdown
from celery.worker import state
from kombu.asynchronous import Hub, set_event_loop
from kombu.asynchronous.timer import Timer
import worker.celery_patches

class Worker:
    hostname = "worker@here"

hub = Hub(timer=Timer(max_interval=3600))
set_event_loop(hub)
nothing_comes, _other_end = socket.socketpair()
hub.add_reader(nothing_comes, print)
hub.call_later(3600, print)
celery_worker.install_worker_term_handler(Worker())
loop = hub.create_loop()
began = time.monotonic()
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    while True:
        state.maybe_shutdown()
        next(loop)
except WorkerShutdown:
    print(time.monotonic() - began)
"""


def test_an_idle_worker_stops_at_once_when_it_is_told_to() -> None:
    done = run_python(LOOP)
    # Without our patch, the loop would notice only after ten seconds.
    assert float(done.stdout.split()[-1]) < 5


#: A worker's child that ends, up to the point at which Celery's own shutdown would begin.
CHILD = """
import os, sys
from celery.signals import worker_process_shutdown
import worker.app
worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=int(sys.argv[1]))
print("and now Celery")
"""


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [(os.EX_OK, ""), (EX_RECYCLE, "and now Celery\n"), (EX_FAILURE, "and now Celery\n")],
)
def test_only_a_child_that_is_stopped_in_order_ends_at_once(
    exit_code: int, said: str, tmp_path: Path
) -> None:
    done = run_python(CHILD, str(exit_code), check=False, LABELMILL_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, said), done.stderr
