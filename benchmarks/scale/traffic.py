"""Messages and requests: what a chunk costs in Redis and in the store, and how long the reconciler takes."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import redis
import sqlalchemy as sa

from benchmarks.model import TrainedModel, make_champion
from benchmarks.pipeline import Pipeline
from benchmarks.report import milliseconds, seconds_of
from benchmarks.scale.ledgers import PreparedLedger, noting
from jobs.ledger import Ledger
from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import KEY_PREFIX, MAX_WAITING, Publisher, make_app
from jobs.schema import chunks
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.console.terminal import say
from labelmill.local.stack import Stack
from producer.sources import Sources
from producer.submit import submit
from worker.reconciler import Reconciler

#: How long idle workers are watched: what they do without any work does not count for chunks.
_IDLE_SECONDS: Final = 6.0

#: PostgreSQL's sessions report their statistics at most so much later (its `PGSTAT_IDLE_INTERVAL`).
_REPORT_SECONDS: Final = 11.0

#: The sessions of the workers' processes and of their parent, without the one that asks.
_OF_OURS: Final = " WHERE datname = current_database() AND pid <> pg_backend_pid()"

#: The commands of this benchmark itself.
_OURS: Final = frozenset(("info", "config|resetstat"))


def measure_messages(prepared: PreparedLedger, settings: Settings, *, ticks: int) -> dict[str, Any]:
    """Return bytes per message, and milliseconds of the reconciler. The ledger must have a backlog."""
    with Stack(settings, worker=False), _redis(settings) as client:
        publisher = Publisher(make_app(settings))
        reconciler = Reconciler(prepared.ledger, publisher, holder="benchmark")
        publisher.waiting()
        before = _used(client)
        began = time.perf_counter()
        assert reconciler.tick() == MAX_WAITING
        first = time.perf_counter() - began
        key = f"{KEY_PREFIX}{CLASSIFY_QUEUE}"
        found = {
            "messages": client.llen(key),
            "bytes_of_memory_per_message": round((_used(client) - before) / MAX_WAITING, 1),
            "bytes_per_message": len(client.lindex(key, 0) or b""),
            "tick_that_sends_1000_ms": round(1000 * first, 2),
            "tick_ms": milliseconds([seconds_of(reconciler.tick) for _ in range(ticks)]),
        }
        publisher.close()
    say(f"messages: {found}")
    return found


def measure_commands(settings: Settings, model: TrainedModel, folder: Path) -> dict[str, Any]:
    """Return the commands and bytes of Redis, and PostgreSQL's transactions, per chunk of a real job."""
    with Pipeline(settings, model) as pipeline, _redis(settings) as client:
        ledger = pipeline.client.ledger
        pipeline.warm_up(folder)
        time.sleep(_REPORT_SECONDS)
        idle = _difference(client, ledger, lambda: time.sleep(_IDLE_SECONDS))
        jobs: list[str] = []
        with noting(ledger) as noted:
            busy = _difference(client, ledger, lambda: jobs.append(pipeline.classify(folder).job_id))
        with ledger.reading() as connection:
            number, images = connection.execute(
                sa.select(sa.func.count(), sa.func.sum(chunks.c.images)).where(chunks.c.job_id == jobs[0])
            ).one()
            open_ones = connection.scalar(sa.text("SELECT count(*) FROM pg_stat_activity" + _OF_OURS))
    passive = busy["seconds"] / idle["seconds"]
    found = {
        "chunks": number,
        "images": int(images),
        "per_chunk": {
            name: round((busy[name] - passive * idle.get(name, 0)) / number, 2)
            for name in sorted(busy)
            if name != "seconds"
        },
        "idle_per_second": {name: round(idle[name] / idle["seconds"], 2) for name in sorted(idle)},
        "connections_open": open_ones,
        "wal_bytes_per_image": round(noted["wal_bytes"] / int(images), 1),
    }
    say(f"commands: {found}")
    return found


def count_requests(settings: Settings, model: TrainedModel, folder: Path) -> dict[str, Any]:
    """Return the requests to the store, and their bytes, for chunks that are submitted and classified."""
    # In a process of its own, like a worker: TensorFlow stays out of this one.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(_count_requests, settings, model, folder).result()
    say(f"requests: {found}")
    return found


class _Counting(Store):
    """A store that counts requests."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.counted = {"puts": 0, "put_bytes": 0, "gets": 0, "got_bytes": 0}

    def put(self, key: str, *pieces: bytes) -> None:
        self.counted["puts"] += 1
        self.counted["put_bytes"] += sum(map(len, pieces))
        super().put(key, *pieces)

    def get(self, key: str, *, limit: int | None = None) -> bytes:
        data = super().get(key, limit=limit)
        self.counted["gets"] += 1
        self.counted["got_bytes"] += len(data)
        return data


def _count_requests(settings: Settings, model: TrainedModel, folder: Path) -> dict[str, Any]:
    from worker.predicting.context import WorkerContext
    from worker.predicting.pipeline import classify_next

    with contextlib.closing(Ledger(settings.ledger)) as ledger:
        make_champion(model, ledger, settings)
    publisher = Publisher(make_app(settings))
    publisher.unavailable = True  # there is no broker, and no worker to wake up
    with WorkerContext(settings, processes=1) as context:
        context.warm_up()  # fetches the model, once per process
        store = context.store = _Counting(settings.store)
        job_id = submit(
            islice(Sources([str(folder)]), 3 * settings.chunk_images),
            ledger=context.ledger,
            store=store,
            publisher=publisher,
            chunk_images=settings.chunk_images,
        ).job_id
        with context.ledger.reading() as connection:
            made = connection.scalar(sa.select(sa.func.count()).where(chunks.c.job_id == job_id))
        images = sum(iter(partial(classify_next, context), 0))
    return {"chunks": made, "images": images, **store.counted}


def _difference(client: redis.Redis, ledger: Ledger, what: Callable[[], object]) -> dict[str, float]:
    """Return by how much Redis's and PostgreSQL's counters moved meanwhile, and seconds."""
    before, began = _standing(client, ledger), time.perf_counter()
    what()
    time.sleep(_REPORT_SECONDS)
    after, seconds = _standing(client, ledger), time.perf_counter() - began
    moved = {name: value - before.get(name, 0) for name, value in after.items()}
    return {name: value for name, value in moved.items() if value} | {"seconds": seconds}


def _standing(client: redis.Redis, ledger: Ledger) -> dict[str, float]:
    info: Any = client.info("stats")
    commands: Any = client.info("commandstats")
    found = {
        "redis bytes in": info["total_net_input_bytes"],
        "redis bytes out": info["total_net_output_bytes"],
    }
    for name, figures in commands.items():
        command = name.removeprefix("cmdstat_")
        if command not in _OURS:
            found[f"redis {command}"] = figures["calls"]
    with ledger.reading() as connection:
        found["transactions"], found["connections opened"] = connection.execute(
            sa.text("SELECT xact_commit, sessions FROM pg_stat_database WHERE datname = current_database()")
        ).one()
    return found


def _used(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return int(info["used_memory"])


@contextlib.contextmanager
def _redis(settings: Settings) -> Iterator[redis.Redis]:
    client = redis.Redis(unix_socket_path=str(settings.broker_socket))
    try:
        yield client
    finally:
        client.close()
