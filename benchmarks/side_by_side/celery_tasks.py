"""The Celery application of two ways: one task per image, and `celery-batches`. Their workers import it.

Neither keeps results. The worker prefetches many messages, because a round trip to the broker costs more than
a task.
"""

from __future__ import annotations

import os
from typing import Any, Final

from celery import Celery
from celery.signals import worker_process_init
from celery_batches import Batches

from benchmarks.harness.celery_worker import START_SECONDS, note_ready
from benchmarks.side_by_side.protocol import COLUMNS, Places, classify_batch, decode, load_network, rows_of

#: The most messages in one batch: more would save the model little. And how long a batch that is not full
#: waits for more: messages take longer to send than to work on, so it is mostly this that ends a batch.
FLUSH_EVERY: Final = 512
FLUSH_SECONDS: Final = 0.2

PLACES: Final = "SIDE_BY_SIDE_PLACES"

_INSERT: Final = f"INSERT INTO predictions {COLUMNS} VALUES (%s, %s, %s, %s, %s)"

places: Final = Places.from_json(os.environ[PLACES])
app = Celery("side_by_side", broker=places.broker)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=10 * FLUSH_EVERY,
    worker_proc_alive_timeout=START_SECONDS,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)

_held: dict[str, Any] = {}  # by one process: its model and its connection


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _hold(**_: object) -> None:
    import psycopg

    _held["network"] = load_network(places, threads=1)
    _held["connection"] = psycopg.connect(places.database, autocommit=True)
    note_ready()


@app.task  # type: ignore[untyped-decorator]
def classify_one(job_id: str, index: int, path: str) -> None:
    """Classify one image, and insert one row."""
    scores = _held["network"](decode(path, places.shape)[None])
    _held["connection"].execute(_INSERT, rows_of(job_id, [(index, path)], scores, places.classes)[0])


@app.task(base=Batches, flush_every=FLUSH_EVERY, flush_interval=FLUSH_SECONDS)  # type: ignore[untyped-decorator]
def classify_many(requests: list[Any]) -> None:
    """Classify a batch of images, and write its rows in one COPY."""
    orders = [request.args for request in requests]
    numbered = [(index, path) for _, index, path in orders]
    classify_batch(_held["network"], _held["connection"], places, orders[0][0], numbered)
