"""How a worker stops: it looks at once, and it ends.

SIGTERM sets a flag, and Celery's loop looks at it when something happens, or else when its next timer is due:
after up to two seconds.

A cold shutdown is SIGQUIT, or Ctrl-C a second time. Celery 5.7 then stops its pool from within the signal's
handler, wherever the main process was interrupted, and waits for its children. One in some fifty waits for
ever: for a child that waits for work. Nobody loses anything by it, the leases run out, but the worker stands
there and takes no message until somebody kills it.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import Any, Final

import celery.apps.worker as celery_worker
from celery.signals import worker_shutting_down
from kombu.asynchronous import get_event_loop

#: Far longer than a cold shutdown takes, which waits for no chunk.
COLD_SHUTDOWN_SECONDS: Final = 5


@worker_shutting_down.connect
def _look_at_once(**_: Any) -> None:
    """Wakes the loop out of its wait. Not by `call_soon`: it takes a lock that the code which the signal has
    interrupted may hold.
    """
    loop = get_event_loop()
    waker = loop and loop._waker  # there is none before the loop runs, nor where the pool has no loop
    if waker is not None:
        waker.wake()


def limit_cold_shutdown() -> None:
    """From now on a worker of this process that is shut down cold is gone some seconds later. To be called
    before it starts.
    """
    shut_down = celery_worker.on_cold_shutdown

    def shut_down_or_die(worker: Any) -> None:
        # The alarm has no handler on purpose: the kernel ends the process whatever it is at. Its children
        # find their pipe closed, and end.
        signal.alarm(COLD_SHUTDOWN_SECONDS)
        shut_down(worker)

    celery_worker.install_worker_term_hard_handler = partial(
        celery_worker.install_worker_term_hard_handler, callback=shut_down_or_die
    )
