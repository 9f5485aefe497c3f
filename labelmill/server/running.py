"""Run the HTTP API, and beside it the process that takes in the images of batches."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from typing import Final

import uvicorn
from prometheus_client import CollectorRegistry

from jobs.errors import LabelmillError
from jobs.ledger.workers import owner_name
from jobs.queue import Publisher, make_app
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client.migrating import open_ledger
from labelmill.console.signals import die_with_parent, sigterm_like_ctrl_c
from labelmill.console.terminal import say
from labelmill.server.connections import Connection
from labelmill.server.exporter import Exporter
from labelmill.server.guards import MAX_HEAD_BYTES
from labelmill.server.metrics import Measured
from labelmill.server.serving import announced, http_url
from producer.intake import IntakeProcess
from worker.logs import log_to_stderr

logger = logging.getLogger(__name__)

#: Seconds between two checks whether an intake process has ended.
_POLL_SECONDS: Final = 0.5

#: The pause before an intake process that ended is started again, and after a failure in it.
_RESTART_SECONDS: Final = 2.0

#: Intake processes: a small batch need not wait for a large one of its project.
_INTAKES: Final = 2

#: How long a client may take to send the head of its next request.
_HEAD_SECONDS: Final = 15

#: How long requests may take to finish when the server is stopped.
_STOP_SECONDS: Final = 20


def serve(
    create: Callable[[Settings, Callable[[], bool]], Measured],
    settings: Settings,
    listening: socket.socket,
    metrics: tuple[str, int] | None = None,
) -> None:
    """Serve an application on this socket until SIGTERM or Ctrl-C.

    With `metrics`, serve its metrics at this address and port.

    Raises LedgerNotReady, Unavailable; OSError if the address for the metrics cannot be used.
    """
    log_to_stderr(settings)
    app = create(settings, lambda: server.should_exit)
    url = http_url(*listening.getsockname()[:2])
    say(f"HTTP API at {url}; Ctrl-C ends it")
    exporter = nullcontext() if metrics is None else _exported(app.registry, *metrics)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
        http=Connection,
        timeout_keep_alive=_HEAD_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    server = uvicorn.Server(config)
    over = threading.Event()
    watching = [
        threading.Thread(target=_watch_intake, args=(settings, over), name=f"intake {number}")
        for number in range(_INTAKES)
    ]
    for thread in watching:
        thread.start()
    try:
        # Uvicorn raises the signal again that has stopped it.
        with exporter, announced(settings, url), suppress(KeyboardInterrupt), sigterm_like_ctrl_c():
            server.run(sockets=[listening])
    finally:
        over.set()
        for thread in watching:
            thread.join()


def _exported(registry: CollectorRegistry, address: str, port: int) -> Exporter:
    exporter = Exporter(registry, address=address, port=port)
    say(f"metrics at {http_url(address, exporter.port)}/metrics")
    return exporter


def _watch_intake(settings: Settings, over: threading.Event) -> None:
    """Run an intake process, and start it again if it ends, until `over` is set."""
    context = multiprocessing.get_context("spawn")
    while not over.is_set():
        process = context.Process(target=run_intake, args=(settings, os.getpid()), name="intake")
        try:
            process.start()
        except OSError as error:
            logger.error("the intake process cannot be started: %s", error)
            over.wait(_RESTART_SECONDS)
            continue
        while process.is_alive() and not over.wait(_POLL_SECONDS):
            pass
        if over.is_set():
            process.terminate()
            process.join()
            return
        logger.error("the intake process ended with %s and is started again", process.exitcode)
        over.wait(_RESTART_SECONDS)


def run_intake(settings: Settings, parent: int) -> None:
    """Take in the images of all batches until SIGTERM or the end of the parent.

    A batch that it leaves behind is continued by the next process.
    """
    die_with_parent()
    if os.getppid() != parent:  # it has ended before that could take effect
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent ends this process
    log_to_stderr(settings)
    # An exception could interrupt the end of a transaction, which would then keep SQLite's lock.
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    owner = owner_name(os.getpid())
    app = make_app(settings)
    while not stop.is_set():
        try:
            with closing(open_ledger(settings)) as ledger:
                store = Store(settings.store)
                process = IntakeProcess(ledger, store, lambda: Publisher(app), settings, owner=owner)
                with closing(process):
                    process.run(stop)
        except LabelmillError as error:
            logger.warning("intake is paused: %s", error)
            time.sleep(_RESTART_SECONDS)
