"""Metrics for Prometheus, read from the ledger and the broker at each scrape.

Nothing is counted here, so it does not matter when or how often an exporter is started. Past events come from
the ledger's counters (`jobs.ledger.counters`), the current state from its tables (`jobs.ledger.metrics`).
`labelmill.operations.metric_families` lists all metrics. Ledger and broker are read in parallel: if one
cannot be reached or hangs, only its own metrics are missing. `labelmill.server.exporter` serves them.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import redis
from prometheus_client.core import HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Connection

from jobs.errors import ErrorCode
from jobs.ledger import Ledger
from jobs.ledger.clock import database_now
from jobs.ledger.counters import (
    BUCKETS,
    DEATHS,
    INFINITE,
    OK,
    AttemptEnd,
    CounterName,
    WebhookResult,
    totals,
)
from jobs.ledger.disks import list_disks, read_disk
from jobs.ledger.jobs.results import RECORD_STAGE
from jobs.ledger.learning.corrections import LiveAccuracy, live_accuracy
from jobs.ledger.learning.models import champions
from jobs.ledger.learning.runs import UNFINISHED_RUN, active_runs
from jobs.ledger.learning.schedules import list_schedules
from jobs.ledger.metrics import backlog, last_run_seconds
from jobs.ledger.workers import BEAT, Problem, QueueWorkers, lost_workers, workers_by_queue
from jobs.messages import QUEUES
from jobs.network.certificates import broker_certificate_end, ledger_certificate_end
from jobs.queue import KEY_PREFIX
from jobs.schema import FINISHED, RunState
from jobs.settings import Settings
from labelmill.console.terminal import say
from labelmill.operations.metric_families import METRICS, PREFIX, counter, gauge
from labelmill.operations.probes import (
    broker_client,
    check_ledger_exists,
    ledger_with_timeouts,
    redacted_message,
)
from worker.schedule import overdue_slots

#: How long a scrape waits for ledger and broker. Prometheus waits ten seconds by default.
TIMEOUT_SECONDS: Final = 5.0

#: How long the live accuracy is cached: computing it reads all corrections of the champion.
LIVE_SECONDS: Final = 60.0


#: Every series is exported from the start, as 0: Prometheus sees no increase in a series that is new.
_LABELS: Final[Mapping[CounterName, tuple[str, ...]]] = {
    CounterName.IMAGES: (OK, *ErrorCode),
    CounterName.ATTEMPTS: tuple(AttemptEnd),
    CounterName.JOBS: tuple(FINISHED),
    CounterName.TRAINING_RUNS: tuple(state for state in RunState if state not in UNFINISHED_RUN),
    CounterName.CHILD_DEATHS: DEATHS,
    CounterName.WEBHOOKS: tuple(WebhookResult),
    CounterName.STAGE_SECONDS: ("claim", "read", "fetch", "load", "decode", "predict", RECORD_STAGE),
}

#: The metrics that are counters of the ledger, each with one label.
_COUNTERS: Final[Mapping[str, CounterName]] = {
    "images": CounterName.IMAGES,
    "attempts": CounterName.ATTEMPTS,
    "jobs_finished": CounterName.JOBS,
    "child_deaths": CounterName.CHILD_DEATHS,
    "webhook_attempts": CounterName.WEBHOOKS,
    "training_runs": CounterName.TRAINING_RUNS,
    "chunk_stage_seconds": CounterName.STAGE_SECONDS,
}

Reading = Callable[[], list[Metric]]


class LabelmillCollector(Collector):
    """Reads ledger and broker at each scrape."""

    def __init__(self, settings: Settings) -> None:
        self._parts = [
            _Part("ledger", settings, _LedgerMetrics(settings).read),
            _Part("broker", settings, lambda: list(_broker_metrics(settings))),
        ]
        self._certificates = _Part("certificates", settings, lambda: list(_certificates(settings)))

    def describe(self) -> list[Metric]:
        """Return nothing, so that the registry does not read ledger and broker before there is a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; for a service that does not answer, only that it is down."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for part in (*self._parts, self._certificates):
            part.begin()
        for part in self._parts:
            found = part.end(deadline)
            yield gauge(f"{part.name}_up", found is not None)
            yield from found or ()
        yield from self._certificates.end(deadline) or ()


class _Part:
    """Metrics from one source, read in a thread of their own.

    A thread that hangs is left alone until it ends, and no second one is started meanwhile.
    """

    def __init__(self, name: str, settings: Settings, read: Reading) -> None:
        self.name = name
        self._settings = settings
        self._read = read
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._found: list[Metric] | None = None
        self._problem = ""

    def begin(self) -> None:
        """Start reading, unless a thread is still reading."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name=f"metrics-{self.name}", daemon=True)
                thread.start()
                self._thread = thread  # not before: another scrape may join it at once

    def end(self, deadline: float) -> list[Metric] | None:
        """Return what was read; None if the service cannot be reached or takes too long."""
        thread = self._thread
        assert thread is not None  # noqa: S101 -- begun before
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            self._report("no answer")
            return None
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._read()
            problem = ""
        except Exception as error:  # any error of a driver: the scrape must be answered
            self._found = None
            problem = redacted_message(error, self._settings)
        self._report(problem)

    def _report(self, problem: str) -> None:
        """Print one line when a problem begins and one when it ends, not one per scrape."""
        if bool(problem) != bool(self._problem):
            say(f"{self.name}: {problem}" if problem else f"{self.name}: answers again")
        self._problem = problem


# ---- the ledger ---------------------------------------------------------------------------------------


class _LedgerMetrics:
    """Reads the ledger's metrics, and caches the live accuracy."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ledger: Ledger | None = None
        self._live: dict[str, tuple[float, LiveAccuracy]] = {}

    def read(self) -> list[Metric]:
        """Return the ledger's metrics. Raises LedgerNotReady, NoLedgerYet, Unavailable, OSError."""
        check_ledger_exists(self._settings)
        if self._ledger is None:
            # Each scrape opens a connection of its own: between scrapes, a server may be restarted or a file
            # replaced.
            self._ledger = ledger_with_timeouts(self._settings, pooled=False)
        self._ledger.check()
        with self._ledger.reading() as connection:
            return [
                *_work(connection),
                *_history(totals(connection)),
                *_workers(connection),
                *_training(connection),
                *_schedules(connection),
                *_disks(connection, self._settings.ledger_file),
                *self._champions(connection),
            ]

    def _champions(self, connection: Connection) -> Iterator[Metric]:
        declared = METRICS["champion"]
        info = InfoMetricFamily(f"{PREFIX}champion", declared.text, labels=declared.labels[:1])
        accuracy = gauge("champion_accuracy_ratio")
        live_ratio = gauge("champion_live_accuracy_ratio")
        labelled = gauge("champion_corrections")
        for champion in champions(connection):
            of = [champion.dataset]
            info.add_metric(of, {"model": champion.id, "architecture": champion.architecture})
            if champion.accuracy is not None:
                accuracy.add_metric(of, champion.accuracy)
            live = self._live_accuracy(connection, champion.id)
            labelled.add_metric(of, live.labelled)
            if live.accuracy is not None:
                live_ratio.add_metric(of, live.accuracy)
        yield from (info, accuracy, live_ratio, labelled)

    def _live_accuracy(self, connection: Connection, model_id: str) -> LiveAccuracy:
        now = time.monotonic()
        read_at, found = self._live.get(model_id, (-math.inf, None))
        if found is None or now - read_at >= LIVE_SECONDS:
            found = live_accuracy(connection, model_id)
            self._live[model_id] = now, found
        return found


def _work(connection: Connection) -> Iterator[Metric]:
    now = backlog(connection)
    yield gauge("pending_images", now.pending_images)
    yield gauge("pending_chunks", now.pending_chunks)
    yield gauge("pending_chunk_oldest_age_seconds", now.oldest_pending_seconds)
    yield gauge("held_images", now.held_images)
    yield gauge("held_chunks", now.held_chunks)
    yield gauge("claimed_images", now.claimed_images)
    yield gauge("claimed_chunks", now.claimed_chunks)
    jobs = gauge("jobs")
    for state, number in [*now.jobs.items(), ("paused", now.paused_jobs)]:
        jobs.add_metric([state], number)
    yield jobs


def _history(sums: Mapping[tuple[str, str], float]) -> Iterator[Metric]:
    for name, counted in _COUNTERS.items():
        family = counter(name)
        for label in _LABELS[counted]:
            family.add_metric([label], sums.get((counted, label), 0.0))
        yield family
    buckets: list[tuple[str, float]] = []
    so_far = 0.0
    for bound in [*(f"{bound:g}" for bound in BUCKETS), INFINITE]:
        so_far += sums.get((CounterName.CHUNK_BUCKET, bound), 0.0)
        buckets.append((bound if bound == INFINITE else str(float(bound)), so_far))
    yield HistogramMetricFamily(
        f"{PREFIX}chunk_seconds",
        METRICS["chunk_seconds"].text,
        buckets=buckets,
        sum_value=sums.get((CounterName.CHUNK_SECONDS, ""), 0.0),
    )


def _workers(connection: Connection) -> Iterator[Metric]:
    alive, processes = gauge("workers"), gauge("worker_processes")
    problems, lost = gauge("worker_problems"), gauge("lost_workers")
    found, lost_by_queue = workers_by_queue(connection), Counter(lost_workers(connection).values())
    for queue in (*QUEUES.values(), BEAT):
        now = found.get(queue, QueueWorkers())
        alive.add_metric([queue], now.workers)
        processes.add_metric([queue], now.processes)
        for problem in Problem:
            problems.add_metric([queue, problem.name.lower()], now.problems.get(problem, 0))
        lost.add_metric([queue], lost_by_queue[queue])
    yield from (alive, processes, problems, lost)


def _training(connection: Connection) -> Iterator[Metric]:
    pending = sum(run.state == RunState.PENDING for run in active_runs(connection))
    yield gauge("pending_training_runs", pending)
    last = gauge("training_run_last_end_age_seconds")
    for dataset, seconds in last_run_seconds(connection).items():
        last.add_metric([dataset], seconds)
    yield last


def _schedules(connection: Connection) -> Iterator[Metric]:
    overdue = gauge("schedule_overdue_seconds")
    schedules, now = list_schedules(connection), database_now(connection)
    slots = overdue_slots(connection, schedules)
    for schedule in schedules:
        slot = slots.get(schedule.dataset, now)
        overdue.add_metric([schedule.dataset], max(0.0, (now - slot).total_seconds()))
    yield overdue


def _disks(connection: Connection, ledger_file: Path | None) -> Iterator[Metric]:
    free, total = gauge("disk_free_bytes"), gauge("disk_bytes")
    disks = {disk.name: disk for disk in list_disks(connection)}
    if ledger_file is not None:  # on this machine; if its disk is full, no worker can report that
        disks["ledger"] = read_disk("ledger", ledger_file)
    for disk in disks.values():
        free.add_metric([disk.name], disk.free_bytes)
        total.add_metric([disk.name], disk.total_bytes)
    yield from (free, total)


# ---- the broker ---------------------------------------------------------------------------------------


def _broker_metrics(settings: Settings) -> Iterator[Metric]:
    """Yield the broker's metrics. Raises kombu's OperationalError, redis.RedisError, OSError."""
    with broker_client(settings) as client:
        messages = gauge("broker_messages")
        for queue in QUEUES.values():
            waiting: Any = client.llen(KEY_PREFIX + queue)
            messages.add_metric([queue], waiting)
        yield messages
        yield from _server_metrics(client)


def _server_metrics(client: redis.Redis) -> Iterator[Metric]:
    memory: Any = client.info("memory")
    stats: Any = client.info("stats")
    yield gauge("broker_memory_bytes", memory["used_memory"])
    yield gauge("broker_memory_max_bytes", memory["maxmemory"])
    yield counter("broker_evicted_keys", stats["evicted_keys"])


# ---- the certificates ---------------------------------------------------------------------------------


def _certificates(settings: Settings) -> Iterator[Metric]:
    """Yield how long the certificates are valid, even if one has expired and its service cannot be used."""
    left = gauge("certificate_valid_seconds")
    ends = {
        "ledger": ledger_certificate_end(settings.ledger),
        "broker": broker_certificate_end(settings.broker),
    }
    for service, end in ends.items():
        if end is not None:
            left.add_metric([service], (end - datetime.now(UTC)).total_seconds())
    yield left
