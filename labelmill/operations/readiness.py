"""A health check for one process of a deployment: quick, with a reason in one sentence."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from jobs.errors import LabelmillError
from jobs.ledger.free_space import prove_room
from jobs.ledger.workers import BEAT, WorkerStatus, list_workers
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE, WEBHOOK_QUEUE
from jobs.settings import Settings
from labelmill.operations.doctor.findings import Level
from labelmill.operations.doctor.store import check_store
from labelmill.operations.probes import broker_client, existing_ledger, redacted_message


class Part(StrEnum):
    """A process of a deployment."""

    WORKER = "worker"
    TRAINER = "trainer"
    WEBHOOKS = "webhooks"
    BEAT = "beat"
    PRODUCER = "producer"


#: How long one turn of a main loop may take. It waits some seconds each for ledger and broker.
ALIVE_SECONDS: Final = 60.0

_QUEUES: Final = {
    Part.WORKER: CLASSIFY_QUEUE,
    Part.TRAINER: RETRAIN_QUEUE,
    Part.WEBHOOKS: WEBHOOK_QUEUE,
    Part.BEAT: BEAT,
}


#: The parts that need free space on the disks of ledger and store.
_NEED_ROOM: Final = (Part.WORKER, Part.TRAINER)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a process can do its work, and why."""

    ready: bool
    reason: str


def readiness(settings: Settings, part: Part) -> Readiness:
    """Return whether this process is ready, and why. Never raise an error.

    Ledger and broker must answer. All but a producer must have sent a recent heartbeat from this host that
    names a started process and no problem. Worker and trainer must be able to write to ledger and store.
    """
    found = Readiness(True, "ledger and broker answer")
    try:
        with existing_ledger(settings) as ledger:
            ledger.check()
            if part in _NEED_ROOM:
                with ledger.transaction() as connection:
                    prove_room(connection)
            if part in _QUEUES:
                with ledger.reading() as connection:
                    found = _worker(part, list_workers(connection, host=socket.gethostname()))
    except (LabelmillError, OSError) as error:
        return Readiness(False, redacted_message(error, settings))
    if not found.ready:
        return found
    if (problem := _broker_problem(settings)) is not None:
        return Readiness(False, f"the broker does not answer: {problem}")
    if part in _NEED_ROOM:
        for finding in check_store(settings):
            if finding.level is Level.PROBLEM:
                return Readiness(False, f"the store cannot be used: {finding.what}")
    return found


def liveness(settings: Settings, part: Part) -> Readiness:
    """Return whether the main loop of this process runs, whatever it can reach. Never raise an error.

    A producer has no main loop between two commands, so it is always alive.
    """
    if part not in _QUEUES:
        return Readiness(True, "nothing runs between two commands")
    file = settings.alive_file(_QUEUES[part])
    try:
        seconds = max(0.0, time.time() - file.stat().st_mtime)
    except OSError as error:
        return Readiness(False, f"no {part} has started here: {file}: {error.strerror}")
    return Readiness(seconds <= ALIVE_SECONDS, f"its main loop ran {seconds:.0f} s ago")


def _broker_problem(settings: Settings) -> str | None:
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    try:
        with broker_client(settings) as client:
            client.ping()
    except (OperationalError, RedisError, OSError) as error:
        return redacted_message(error, settings)
    return None


def _worker(part: Part, found: list[WorkerStatus]) -> Readiness:
    """Return the readiness of this host's worker of that kind; of several, the one that was seen last."""
    mine = [worker for worker in found if worker.queue == _QUEUES[part]]
    if not mine:
        return Readiness(False, f"no {part} on this host, {socket.gethostname()}, has sent a heartbeat")
    last = min(mine, key=lambda worker: worker.seen_seconds)
    seen = f"{last.name} was seen {last.seen_seconds:.0f} s ago"
    if not last.alive:
        return Readiness(False, f"{seen}, and not since")
    if last.problem is not None:
        return Readiness(False, f"{seen}, and {last.problem}")
    if not last.processes:
        return Readiness(False, f"{seen}, without a process that has started")
    return Readiness(True, f"{seen}, with {last.processes} processes")
