"""The metrics for Prometheus: the type, the labels and the text of each. The reference is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

PREFIX: Final = "labelmill_"


class Declared(NamedTuple):
    """What a metric is."""

    type: str
    text: str
    labels: tuple[str, ...] = ()


#: By name, without the prefix and the suffix that Prometheus adds.
METRICS: Final[Mapping[str, Declared]] = {
    "ledger_up": Declared(
        "gauge",
        "1 if the ledger answers and this version can use its schema; if 0, its metrics are missing.",
    ),
    "broker_up": Declared("gauge", "1 if the broker answers; if 0, its metrics are missing."),
    "pending_images": Declared("gauge", "Images that wait for a worker or have lost theirs."),
    "pending_chunks": Declared("gauge", "Chunks that wait for a worker or have lost theirs."),
    "pending_chunk_oldest_age_seconds": Declared(
        "gauge", "Age of the oldest waiting chunk; 0 if none waits."
    ),
    "held_images": Declared("gauge", "Waiting images of paused jobs."),
    "held_chunks": Declared("gauge", "Waiting chunks of paused jobs."),
    "claimed_images": Declared("gauge", "Images of chunks that a worker has claimed."),
    "claimed_chunks": Declared("gauge", "Chunks that a worker has claimed."),
    "jobs": Declared(
        "gauge", "Unfinished jobs: receiving, running, and those of both that are paused.", ("state",)
    ),
    "images": Declared("counter", "Recorded outcomes: ok or an error code.", ("outcome",)),
    "attempts": Declared("counter", "Claims on chunks, by how they ended.", ("end",)),
    "jobs_finished": Declared("counter", "Jobs that became done, failed or cancelled.", ("state",)),
    "training_runs": Declared(
        "counter", "Training runs that became done, failed, interrupted, cancelled or skipped.", ("state",)
    ),
    "training_run_last_end_age_seconds": Declared(
        "gauge", "Time since the latest training run ended; missing before the first.", ("dataset",)
    ),
    "chunk_seconds": Declared("histogram", "Time from the claim of a chunk to its results."),
    "chunk_stage_seconds": Declared(
        "counter",
        "Time spent on finished chunks, by stage: claim, read (the payload), fetch (images by reference), "
        "load (the model, if the process did not have it), decode, predict or record.",
        ("stage",),
    ),
    "champion": Declared("info", "Always 1; the model of new jobs.", ("dataset", "model", "architecture")),
    "champion_accuracy_ratio": Declared(
        "gauge", "Accuracy of the champion, from its evaluation, 0 to 1.", ("dataset",)
    ),
    "champion_live_accuracy_ratio": Declared(
        "gauge",
        "Share of the champion's corrected or confirmed predictions that were right; missing before the "
        "first. Up to a minute old.",
        ("dataset",),
    ),
    "champion_corrections": Declared(
        "gauge", "Number of the champion's predictions that people corrected or confirmed.", ("dataset",)
    ),
    "schedule_overdue_seconds": Declared(
        "gauge",
        "Time since a scheduled training for which no run was requested; 0 if none is overdue.",
        ("dataset",),
    ),
    "pending_training_runs": Declared("gauge", "Training runs that wait for a trainer."),
    "workers": Declared(
        "gauge",
        "Workers, trainers, webhook senders and beats (labelmill.beat) with a heartbeat within 30 seconds.",
        ("queue",),
    ),
    "worker_processes": Declared("gauge", "Their processes that have started.", ("queue",)),
    "worker_problems": Declared(
        "gauge",
        "Workers that report a problem. memory: its processes keep dying, killed for lack of memory; deaths: "
        "they keep dying, perhaps for another reason; clock: its clock and the database's differ by more "
        "than 30 seconds; model: it could not load a champion.",
        ("queue", "problem"),
    ),
    "lost_workers": Declared(
        "gauge",
        "Workers that died or cannot reach the ledger: their latest heartbeat is between 30 seconds and ten "
        "and a half minutes old.",
        ("queue",),
    ),
    "child_deaths": Declared(
        "counter",
        "Processes of workers that died, by signal; other is a rarer signal or an exit code.",
        ("signal",),
    ),
    "webhook_attempts": Declared(
        "counter", "Attempts to send a webhook: delivered, retried later, or failed permanently.", ("result",)
    ),
    "disk_free_bytes": Declared("gauge", "Free space of the disk of the store or the ledger.", ("disk",)),
    "disk_bytes": Declared("gauge", "Size of this disk.", ("disk",)),
    "certificate_valid_seconds": Declared(
        "gauge",
        "Time until the certificate of the ledger or the broker expires; negative afterwards. Missing "
        "without TLS, or if the certificate is not checked.",
        ("service",),
    ),
    "broker_messages": Declared(
        "gauge",
        "Waiting messages. They wake workers up and are at most 1,000, however much waits in the ledger.",
        ("queue",),
    ),
    "broker_memory_bytes": Declared("gauge", "Memory that the broker uses."),
    "broker_memory_max_bytes": Declared("gauge", "Memory that the broker can use; 0 if unlimited."),
    "broker_evicted_keys": Declared("counter", "Keys that the broker evicted; always 0 with noeviction."),
}


def exported_name(name: str) -> str:
    """Return the name under which Prometheus stores a metric; parts of a histogram have longer ones."""
    return PREFIX + name + {"counter": "_total", "info": "_info"}.get(METRICS[name].type, "")


def gauge(name: str, value: float | None = None) -> GaugeMetricFamily:
    """Return the gauge with this name; without labels, it has the value."""
    declared = METRICS[name]
    return GaugeMetricFamily(PREFIX + name, declared.text, value=value, labels=declared.labels or None)


def counter(name: str, value: float | None = None) -> CounterMetricFamily:
    """Return the counter with this name; without labels, it has the value."""
    declared = METRICS[name]
    return CounterMetricFamily(PREFIX + name, declared.text, value=value, labels=declared.labels or None)
