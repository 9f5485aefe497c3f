"""A worker that is stopped ends, whatever Celery's own part of it waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from billiard.pool import EX_FAILURE, EX_RECYCLE

#: A process in which Celery's cold shutdown waits for ever, and the second of two handlers is ours.
PROGRAM = """
import os, signal, sys, time
import celery.apps.worker as celery_worker
import worker.stopping

def wait_for_ever(_worker):
    print("stopping", flush=True)
    while True:
        time.sleep(1)

class Worker:
    hostname = "worker@here"

celery_worker.on_cold_shutdown = wait_for_ever
worker.stopping.COLD_SHUTDOWN_SECONDS = 1
worker.stopping.limit_cold_shutdown()
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
    # Given a worker whose cold shutdown hangs, when it is told SIGQUIT, or SIGINT for the second time
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, signal_name], capture_output=True, text=True, timeout=30, check=False
    )
    # Then it had begun to stop, and is gone.
    assert "stopping" in done.stdout, done.stderr
    assert done.returncode == -signal.SIGALRM


#: A child of a worker that ends, up to where Celery's own part of it would begin.
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
def test_only_a_child_that_is_stopped_in_good_order_ends_at_once(
    exit_code: int, said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(exit_code)],
        env=os.environ | {"LABELMILL_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, said), done.stderr
