"""Prometheus can always scrape the ledger's and the broker's figures, at little cost."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest

from jobs.ids import new_id
from jobs.ledger.disks import Disk, report_disk
from jobs.ledger.jobs.control import end_job, pause_job
from jobs.ledger.jobs.results import Classified, Spent, record_results
from jobs.ledger.learning.corrections import NewCorrection, save_corrections
from jobs.ledger.learning.runs import cancel_run, request_run
from jobs.ledger.learning.schedules import set_schedule
from jobs.ledger.metrics import backlog
from jobs.ledger.workers import WorkerRow, report_worker
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.schema import JobState, chunks, db_now, workers
from jobs.settings import Settings
from labelmill.operations import metrics
from labelmill.operations.metric_families import METRICS, exported_name
from labelmill.operations.metrics import LabelmillCollector
from labelmill.server.application import create_app
from tests.conftest import plans_of
from tests.outcomes import Outcome, to_columns
from tests.scraping import Scrape, collected, exporter_at


@pytest.fixture
def look(settings: Settings):
    """Return a function: `look()` scrapes this test's ledger and broker without a server."""
    collector = LabelmillCollector(settings)
    return lambda: collected(collector)


# ---- the figures --------------------------------------------------------------------------------------


def test_what_waits_is_told_apart_from_what_somebody_is_at(ledger, make_job, worker, look):
    # Given a job with a chunk done, one claimed, one with an expired lease and one pending, and a paused
    # job with one claimed chunk
    job = make_job([5, 4, 3, 2])
    worker.work(job.chunks[0])
    worker.must_claim(job.chunks[1])
    worker.must_claim(job.chunks[2], lease_seconds=-1)
    paused = make_job([10, 20])
    worker.must_claim(paused.chunks[0])
    make_job([1], sealed=False)
    with ledger.transaction() as connection:
        pause_job(connection, paused.id)
        connection.execute(
            chunks.update().where(chunks.c.id == job.chunks[2].id).values(created_at=db_now(-90))
        )

    # When it is scraped
    now = look()

    # Then each image counts under its chunk's state
    assert (now["pending_images"], now["pending_chunks"]) == (3 + 2 + 1, 3)
    assert (now["claimed_images"], now["claimed_chunks"]) == (4 + 10, 2)
    assert (now["held_images"], now["held_chunks"]) == (20, 1)
    assert now.by("jobs") == {"running": 1, "receiving": 1, "paused": 1}
    assert 90 <= now["pending_chunk_oldest_age_seconds"] < 200


def test_nothing_waits_where_all_is_done_or_was_stopped(ledger, make_job, worker, look):
    # Given a job that is done, and one that is cancelled while a worker has a chunk
    done = make_job([5])
    worker.work(done.chunks[0])
    stopped = make_job([4, 3])
    worker.must_claim(stopped.chunks[0])
    with ledger.transaction() as connection:
        end_job(connection, stopped.id, JobState.CANCELLED)

    # Then nothing is pending, one chunk is claimed, and finished work is counted
    now = look()
    for name in ("pending_images", "pending_chunks", "pending_chunk_oldest_age_seconds", "held_images"):
        assert now[name] == 0, name
    assert (now["claimed_images"], now["claimed_chunks"]) == (4, 1)
    assert now.by("jobs") == {}
    assert now.by("jobs_finished_total") == {"done": 1, "cancelled": 1}
    assert now.by("images_total") == {"ok": 5}
    assert now.by("attempts_total") == {"done": 1}


def test_time_is_told_as_a_histogram_and_by_stage(make_job, worker, look):
    # Given a chunk that took two seconds, one that took twenty, and one whose time is not known
    job = make_job([1, 1, 1])
    worker.work(job.chunks[2])
    for chunk, seconds in zip(job.chunks, (2.0, 20.0), strict=False):
        claim = worker.must_claim(chunk)
        with worker.ledger.transaction() as connection:
            spent = Spent(time.perf_counter() - seconds, {"decode": seconds / 2})
            record_results(connection, [Classified(claim, to_columns([Outcome("a", "7", 0.5)]))], spent)

    # Then both are in the buckets above their times
    now = look()
    buckets = now.by("chunk_seconds_bucket")
    assert (buckets.get("1.0"), buckets["2.5"], buckets["10.0"], buckets["30.0"], buckets["+Inf"]) == (
        *(None, 1, 1, 2, 2),
    )
    assert now["chunk_seconds_count"] == 2
    assert 22 <= now["chunk_seconds_sum"] < 40
    stages = now.by("chunk_stage_seconds_total")
    assert stages["decode"] == 11
    assert 0 < stages["record"] < 30


def test_the_champion_is_told_with_what_people_say_of_it(ledger, make_job, champion, look, monkeypatch):
    # Given a champion with one corrected and one confirmed prediction
    job = make_job([4])
    labels = [("7", "7"), ("1", "7"), ("2", "7"), ("3", None)]

    def correct(number: int) -> None:
        label, predicted = labels[number]
        row = NewCorrection(job.id, number, "a.png", label, predicted, 0.5, champion.id, "0" * 64)
        with ledger.transaction() as connection:
            save_corrections(connection, [row])

    correct(0)
    correct(1)

    # Then both accuracies are reported: by its evaluation, and by corrections
    now = look()
    assert now.labels("champion_info") == {
        "dataset": "mnist",
        "model": champion.id,
        "architecture": "dense",
    }
    assert now.by("champion_accuracy_ratio") == {"mnist": 0.975}
    assert now.by("champion_live_accuracy_ratio") == {"mnist": 0.5}
    assert now.by("champion_corrections") == {"mnist": 2}

    # And corrections are not counted at every scrape; an image without a label does not count
    correct(2)
    correct(3)
    assert look().by("champion_corrections") == {"mnist": 2}
    monkeypatch.setattr(metrics, "LIVE_SECONDS", 0.0)
    assert look().by("champion_corrections") == {"mnist": 3}


def test_workers_that_are_there_are_told_by_queue(ledger, look):
    # Given three workers, one of them without a recent heartbeat, and a trainer
    with ledger.transaction() as connection:
        for name, queue, children in [
            ("a/1", CLASSIFY_QUEUE, ["a/2", "a/3"]),
            ("b/1", CLASSIFY_QUEUE, ["b/2"]),
            ("c/1", CLASSIFY_QUEUE, ["c/2"]),
            ("t/1", RETRAIN_QUEUE, ["t/2"]),
        ]:
            report_worker(connection, WorkerRow(name, name[0], queue, children, "0"), up_seconds=1)
        connection.execute(workers.update().where(workers.c.host == "c").values(seen_at=db_now(-31)))

    # Then those with a recent heartbeat are counted, and their ready processes
    now = look()
    assert now.by("workers") == {CLASSIFY_QUEUE: 2, RETRAIN_QUEUE: 1}
    assert now.by("worker_processes") == {CLASSIFY_QUEUE: 3, RETRAIN_QUEUE: 1}


def test_each_dataset_has_its_champion_and_its_runs(ledger, champion, make_model, look):
    # Given a second dataset with a champion, and a run of it that has ended
    finch = make_model(b"finch", dataset="birds")
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={}, dataset="birds")
        cancel_run(connection, run_id)

    # Then both champions are reported, and only the run of one
    now = look()
    told = {sample.labels["dataset"]: sample.labels["model"] for sample in now.samples("champion_info")}
    assert told == {"mnist": champion.id, "birds": finch.id}
    assert now.by("champion_accuracy_ratio") == {"mnist": 0.975, "birds": 0.975}
    assert now.by("training_runs_total") == {"cancelled": 1}
    assert list(now.by("training_run_last_end_age_seconds")) == ["birds"]
    assert 0 < now.by("training_run_last_end_age_seconds")["birds"] < 60


def test_what_waits_in_the_broker_is_told(make_job, publisher, look):
    job = make_job([1, 1])
    publisher.wake_up(len(job.chunks))
    now = look()
    assert now.by("broker_messages") == {CLASSIFY_QUEUE: 2}
    assert now["broker_memory_bytes"] > 100_000
    assert (now["broker_memory_max_bytes"], now["broker_evicted_keys_total"]) == (0, 0)


def test_what_was_never_counted_is_told_as_nothing(look):
    # Prometheus sees no increase in a counter that begins with its first event.
    now = look()
    assert now.by("images_total") == {}
    for family in now.families:
        if family.name == "labelmill_images":
            assert {sample.labels["outcome"] for sample in family.samples} > {"ok", "corrupt"}
            return
    pytest.fail("there is no such metric")


# ---- unavailable services -----------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_broker_that_is_away_costs_its_own_metrics_alone(settings, make_job, short_folder):
    make_job([3])
    away = settings.model_copy(update={"broker_url": f"redis+socket://{short_folder}/nobody.sock"})
    now = collected(LabelmillCollector(away))
    assert (now["ledger_up"], now["broker_up"], now["pending_images"]) == (1, 0, 3)
    assert "broker_messages" not in now


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_ledger_that_is_away_costs_its_own_metrics_alone(settings, short_folder, postgresql_server):
    # Given a ledger that does not exist, a database that does not exist, and a file that was never migrated
    nobodys = short_folder / "nobodys" / "ledger.sqlite3"
    empty = short_folder / "empty.sqlite3"
    empty.touch()
    for url in (f"sqlite:///{nobodys}", postgresql_server.url("nowhere"), f"sqlite:///{empty}"):
        now = collected(LabelmillCollector(settings.model_copy(update={"ledger_url": url})))
        assert (now["ledger_up"], now["broker_up"]) == (0, 1), url
        assert "pending_images" not in now
    # And the scrape did not create a ledger
    assert not nobodys.exists()


@pytest.fixture
def mute_port() -> Iterator[int]:
    """Return the port of a server that accepts connections and never answers."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_ledger_that_hangs_keeps_no_scrape_waiting(settings, mute_port, monkeypatch):
    # Given a ledger that accepts connections and never answers
    monkeypatch.setattr("jobs.ledger.database.CONNECT_SECONDS", 60)
    monkeypatch.setattr(metrics, "TIMEOUT_SECONDS", 0.5)
    mute = settings.model_copy(update={"ledger_url": f"postgresql+psycopg://127.0.0.1:{mute_port}/x"})
    collector = LabelmillCollector(mute)

    # When it is scraped twice, Then each scrape returns in time, with the broker's figures
    began = time.monotonic()
    for _ in range(2):
        now = collected(collector)
        assert (now["ledger_up"], now["broker_up"]) == (0, 1)
    assert time.monotonic() - began < 30

    # And one thread waits for the ledger, not one per scrape
    assert sum(thread.name == "metrics-ledger" for thread in threading.enumerate()) == 1


# ---- the exporter -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.usefixtures("ledger")
def test_the_url_that_is_said_can_be_opened(settings, address):
    # Given a machine that has this address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"no {address} here: {error}")

    # When the exporter prints its URL, Then it can be opened
    listen = f"[{address}]:0" if ":" in address else f"{address}:0"
    with exporter_at(settings, listen) as url, urlopen(url, timeout=30) as answer:
        assert b"labelmill_ledger_up 1.0" in answer.read()
    # And the URL is valid for stricter parsers than urlopen
    assert urlsplit(url).hostname == address


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_every_declared_metric_is_exported_and_no_other(settings, ledger, champion, tls_broker):
    # Given a ledger in which every metric has a value, and a broker with a certificate
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        cancel_run(connection, run_id)
        row = NewCorrection(run_id, 0, "a.png", "7", "7", 0.5, champion.id, "0" * 64)
        save_corrections(connection, [row])
        report_disk(connection, Disk("store", free_bytes=1, total_bytes=2))
        set_schedule(connection, "birds", cron="0 3 * * *", after_corrections=None, request={})

    # When all metrics are collected, Then they are the declared ones, with their types and labels
    declared = {
        (exported_name(name), "gauge" if each.type == "info" else each.type, tuple(sorted(each.labels)))
        for name, each in METRICS.items()
    }
    with_tls = LabelmillCollector(settings.model_copy(update={"broker_url": tls_broker.url()}))
    assert set(_told(collected(with_tls))) == declared
    # And so are those of the API
    [of_the_api] = _told(Scrape(generate_latest(create_app(settings).registry).decode()))
    assert of_the_api == ("labelmill_api_request_seconds", "histogram", ("status",))


def _told(now: Scrape) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for family in now.families:
        assert family.documentation
        name, kind = family.name, family.type
        if kind == "counter":
            name += "_total"
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        yield name, kind, tuple(sorted(labels))


# ---- the cost -----------------------------------------------------------------------------------------


@pytest.mark.fast
def test_a_scrape_reads_by_indexes(ledger, make_job, worker):
    # Given a ledger
    job = make_job([1, 1])
    worker.must_claim(job.chunks[0])

    # When the plans of a scrape are read, Then they use the indexes on open jobs and chunks
    for statement, plan in plans_of(ledger, backlog):
        for table, index in (("chunks", "ix_chunks_"), ("jobs", "ix_jobs_open")):
            if f"FROM {table}" in statement.replace("\n", " "):
                assert index in plan, f"{statement}\n{plan}"
        assert "Seq Scan" not in plan, f"{statement}\n{plan}"
        assert not re.search(r"SCAN (chunks|jobs)(?! USING)", plan), f"{statement}\n{plan}"
