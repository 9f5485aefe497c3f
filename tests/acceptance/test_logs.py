"""A real worker that logs as JSON: every line is one object, from the first to the last.

And what processes send to a collector of traces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.ledger.learning.models import find_champion
from jobs.schema import chunks, jobs
from jobs.settings import ENV_PREFIX
from jobs.traces import ENDPOINT_VARIABLE
from tests.console import Home, until
from tests.faults.harness import Harness
from tests.faults.pictures import Picture, pictures, poisoned
from tests.otlp import Collector, attributes


@pytest.fixture
def harness(short_folder: Path) -> Iterator[Harness]:
    """Return a harness whose workers will log as JSON; there is none yet."""
    with Harness(short_folder / "home", workers=0, **{ENV_PREFIX + "LOG_FORMAT": "json"}) as harness:
        yield harness


def lines_of(harness: Harness) -> list[dict[str, Any]]:
    """Return all that the worker said, which must be JSON."""
    return [json.loads(line) for line in (harness.faults / "worker.log").read_text().splitlines()]


def test_a_worker_that_logs_json_says_all_of_a_chunk_and_of_what_fails(harness: Harness) -> None:
    # given a job in which one image is broken, one is a mistake of the program's and one kills its process;
    # and a job whose payload is damaged
    images = pictures(8)
    images[3] = Picture("broken.png", b"no picture", "unidentified")
    images.append(poisoned(pictures(1, first=8)[0], "bug", answer="quarantined"))
    images.append(poisoned(pictures(1, first=9)[0], "segfault", answer="quarantined"))
    job = harness.submit(images, chunk_images=4)
    damaged = harness.submit(pictures(2), chunk_images=2)
    [path] = (harness.settings.home / "store" / "payloads" / damaged).iterdir()
    path.write_bytes(b"changed")

    # when a worker classifies them, and is told to stop
    worker = harness.add_worker("worker", processes=1, loglevel="debug")
    harness.wait(job)
    harness.wait(damaged)
    assert harness.remove_worker(worker) == 0

    # then each of its lines is JSON
    lines = lines_of(harness)
    assert all({"time", "level", "logger", "message", "process", "pid"} <= line.keys() for line in lines)
    assert any("Warm shutdown" in line["message"] for line in lines)

    # and there is a line for each chunk that was done, with its facts
    done = [
        line for line in lines if line["message"].startswith("chunk ") and " is done: " in line["message"]
    ]
    with harness.ledger.reading() as connection:
        champion = find_champion(connection)
        query = sa.select(chunks).where(chunks.c.job_id == job, chunks.c.state == "done")
        rows = connection.execute(query).all()
    assert champion is not None
    assert {
        line["chunk"]: (line["job"], line["model"], line["images"], line["attempt"]) for line in done
    } == {row.id: (job, champion.id, row.images, row.attempts) for row in rows}
    assert len(done) == len(rows)
    assert sum(line["errors"] for line in done) == 3
    assert all({"read", "record", "total"} <= line["seconds"].keys() for line in done)
    assert all(line["process"].startswith("ForkPoolWorker-") for line in done)
    assert not any("broken.png" in line["message"] for line in lines)

    # and what failed names its chunk, or its job, with the traceback in a field
    chunk_ids = {line["chunk"] for line in lines if "chunk" in line}
    mistakes = [line for line in lines if "a mistake of the program" in line["message"]]
    crashes = [line["message"] for line in mistakes if " crashed: " in line["message"]]
    assert crashes
    for message in crashes:
        assert any(chunk_id in message for chunk_id in chunk_ids)
    # A message names no chunk, so the main process cannot say whose images the dead process had.
    assert any("WorkerLostError" in line["message"] for line in lines)
    assert any("ZeroDivisionError" in line.get("exception", "") for line in mistakes)
    assert any(" crashed: " in line["message"] and line["attempt"] == 1 for line in mistakes)
    [failed] = [line for line in lines if line["message"].startswith(f"job {damaged} failed: ")]
    assert failed["job"] == damaged
    assert failed["level"] == "error"

    # and what is about nothing in particular names nothing
    assert not any("chunk" in line for line in lines if line["logger"] == "worker.reconciler")


def test_a_worker_without_its_broker_says_so_and_no_secret(harness: Harness) -> None:
    broker = {ENV_PREFIX + "BROKER_URL": "redis://user:s3cret%2F@127.0.0.1:1/0"}
    worker, log = harness.add_worker("worker", processes=1, **broker), harness.faults / "worker.log"
    until(lambda: "the broker cannot be reached" in log.read_text(), "it has tried")
    harness.remove_worker(worker)
    assert "s3cret" not in log.read_text()
    messages = [line["message"] for line in lines_of(harness)]
    assert any("redis://user:***@127.0.0.1:1/0" in message for message in messages)
    assert "worker: Warm shutdown (MainProcess)" in messages


def test_a_collector_gets_a_job_from_its_submission_to_its_rows(
    harness: Harness, collector: Collector, tmp_path: Path
) -> None:
    # given a collector, and a worker
    endpoint = {ENDPOINT_VARIABLE: collector.url}
    worker = harness.add_worker("worker", processes=1, **endpoint)

    # when a job is submitted from the console
    for picture in pictures(10):
        (tmp_path / picture.name).write_bytes(picture.data)
    producer = Home(harness.settings.home, endpoint | {ENV_PREFIX + "CHUNK_IMAGES": "5"})
    job = producer.ok("submit", tmp_path, "--watch").split()[-1]

    # and the worker ends, which sends what it has left
    assert harness.remove_worker(worker) == 0

    # then the collector has one trace: the submission, and below it both chunks with their stages
    [(service, submitted)] = collector.spans("submit")
    assert service == "labelmill-producer"
    assert attributes(submitted)["labelmill.job"] == job
    found = collector.spans("chunk")
    assert {service for service, _ in found} == {"labelmill-worker"}
    assert [attributes(span)["labelmill.images"] for _, span in found] == [5, 5]
    for _, span in found:
        assert span.trace_id == submitted.trace_id
        assert span.parent_span_id == submitted.span_id
        for stage in ("read", "decode", "predict", "record"):
            [child] = [child for _, child in collector.spans(stage) if child.parent_span_id == span.span_id]
            assert child.trace_id == submitted.trace_id

    # and the trace's id is in the job's row and in the lines of the log
    trace = submitted.trace_id.hex()
    with harness.ledger.reading() as connection:
        assert trace in connection.scalars(sa.select(jobs.c.traceparent).where(jobs.c.id == job)).one()
    assert {line["trace"] for line in lines_of(harness) if line.get("images")} == {trace}
    assert not any(picture.name in str(collector.requests) for picture in pictures(10))
