"""Run the HTTP API, and beside it the process that takes in the images of batches."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import threading
import time
from contextlib import closing, suppress
from typing import Final

import uvicorn

from jobs.errors import LabelmillError
from jobs.queue import Publisher, make_app
from jobs.settings import Settings
from jobs.store import Store
from labelmill.migrating import open_ledger
from labelmill.server.application import create_app
from labelmill.signals import die_with_parent, sigterm_like_ctrl_c
from producer.intake import take_in_next
from worker.logs import log_to_stderr

logger = logging.getLogger(__name__)

#: The pause between two looks for a batch that waits.
_POLL_SECONDS: Final = 0.5

#: The pause before an intake process that ended is started again, and after a failure in it.
_RESTART_SECONDS: Final = 2.0

#: How long requests may take to finish when the server is stopped.
_STOP_SECONDS: Final = 20


def serve(settings: Settings, listening: socket.socket) -> None:
    """Serve the API on this socket until SIGTERM or Ctrl-C. Raises LedgerNotReady, Unavailable."""
    log_to_stderr(settings)
    open_ledger(settings).close()
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    over = threading.Event()
    watching = threading.Thread(target=_watch_intake, args=(settings, over), name="intake")
    watching.start()
    try:
        # Uvicorn raises the signal again that has stopped it.
        with suppress(KeyboardInterrupt), sigterm_like_ctrl_c():
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        over.set()
        watching.join()


def _watch_intake(settings: Settings, over: threading.Event) -> None:
    """Run the intake process, and start it again if it ends, until `over` is set."""
    context = multiprocessing.get_context("spawn")
    while not over.is_set():
        process = context.Process(target=run_intake, args=(settings,), name="intake")
        process.start()
        while process.is_alive() and not over.wait(_POLL_SECONDS):
            pass
        if over.is_set():
            process.terminate()
            process.join()
            return
        logger.error("the intake process ended with %s and is started again", process.exitcode)
        over.wait(_RESTART_SECONDS)


def run_intake(settings: Settings) -> None:
    """Take in the images of all batches, one after the other, until this process is ended.

    A batch that it leaves behind is continued by the next process.
    """
    die_with_parent()
    log_to_stderr(settings)
    owner = f"{socket.gethostname()}/{os.getpid()}"
    with closing(Publisher(make_app(settings))) as publisher:
        while True:
            try:
                with closing(open_ledger(settings)) as ledger:
                    store = Store(settings.store)
                    while True:
                        if not take_in_next(ledger, store, publisher.reset(), settings, owner=owner):
                            time.sleep(_POLL_SECONDS)
            except LabelmillError as error:
                logger.warning("no batch is taken in for now: %s", error)
                time.sleep(_RESTART_SECONDS)
