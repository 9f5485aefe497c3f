"""Real processes that log as JSON: every line is one object, from the first to the last, and says no secret.

And what they send to a collector of traces.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.ledger.jobs.queries import job_status
from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import Publisher, make_app
from jobs.schema import chunks, jobs
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.store import Store
from jobs.traces import ENDPOINT_VARIABLE
from labelmill.local.stack import worker_command
from producer.submit import Submitter, submit
from tests.console import COMMAND_SECONDS, until
from tests.faults.pictures import Picture, pictures, poisoned
from tests.faults.plan import FOLDER_VARIABLE
from tests.kerasfile import keras_file
from tests.otlp import Collector, attributes
from tests.registering import register_digits
from tests.secured import TlsBroker, TlsLedger

PROJECT: Final = Path(__file__).parents[2]

#: In all passwords of these tests, and in nothing else.
MARK: Final = "s3cret"


@dataclass
class Deployment:
    """A broker and a ledger with passwords, a store, and processes that use them."""

    folder: Path
    settings: Settings
    environment: dict[str, str]
    model_id: str

    @contextlib.contextmanager
    def process(self, name: str, command: Sequence[str], **extra: str) -> Iterator[subprocess.Popen[bytes]]:
        """Starts a process; its stdout and stderr go into files of its name."""
        with (
            (self.folder / f"{name}.out").open("wb") as output,
            (self.folder / f"{name}.err").open("wb") as errors,
        ):
            process = subprocess.Popen(
                command,
                env=os.environ | self.environment | extra,
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def worker(self, name: str, **extra: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """A worker that needs no TensorFlow."""
        command = worker_command(queue=CLASSIFY_QUEUE, processes=1, name=name, loglevel="debug")
        command[command.index("worker.app")] = "tests.faults.failpoints:app"
        return self.process(name, command, **extra)

    def says(self, name: str, word: str) -> bool:
        return word in (self.folder / f"{name}.err").read_text()

    def lines(self, name: str) -> list[dict[str, Any]]:
        """All that the process said, which must be JSON on stderr, and no secret."""
        assert (self.folder / f"{name}.out").read_text() == ""
        text = (self.folder / f"{name}.err").read_text()
        assert MARK not in text
        return [json.loads(line) for line in text.splitlines()]

    def submit(self, images: Sequence[Picture], *, chunk_images: int, ring: bool = True) -> str:
        """Submits a job; gives back its id. Without a ring, the reconciler rings some seconds later."""
        app = make_app(self.settings)
        with (
            contextlib.closing(Ledger(self.settings.ledger)) as ledger,
            contextlib.closing(Publisher(app)) as publisher,
        ):
            publisher.unavailable = not ring
            submitter = Submitter(ledger, Store(self.settings.store), publisher, chunk_images)
            return submit(submitter, (image.source for image in images)).job_id

    def wait(self, job_id: str) -> None:
        with contextlib.closing(Ledger(self.settings.ledger)) as ledger:

            def is_over() -> bool:
                with ledger.reading() as connection:
                    return job_status(connection, job_id).finished

            until(is_over, f"job {job_id} has ended")


@pytest.fixture
def deployment(
    tls_broker: TlsBroker, tls_ledger: TlsLedger, postgresql_url: str, short_folder: Path
) -> Deployment:
    settings = Settings.load(
        home=short_folder / "home",
        broker_url=tls_broker.url(),
        ledger_url=postgresql_url,
        lease_seconds=5,
        image_seconds=2,
        processes=1,
        log_format="json",
    )
    faults = short_folder / "faults"
    faults.mkdir()
    with contextlib.closing(Ledger(postgresql_url)) as ledger:
        model = register_digits(ledger, Store(settings.store), keras_file(), champion=True)
    environment = settings.environment() | {
        ENV_PREFIX + "LEDGER_URL": tls_ledger.url(),
        FOLDER_VARIABLE: str(faults),
    }
    return Deployment(short_folder, settings, environment, model.id)


def test_every_line_of_a_worker_is_json_from_its_start_to_its_shutdown(
    deployment: Deployment, postgresql_url: str
) -> None:
    # given a worker that says all it can
    with deployment.worker("worker") as worker:
        until(lambda: deployment.says("worker", "ready."), "the worker is ready")

        # when it classifies: images of which one is broken, one that is a mistake of the program's and one
        # that kills its process; and a job whose payload is damaged
        images = pictures(8)
        images[3] = Picture("broken.png", b"no picture", "unidentified")
        images.append(poisoned(pictures(1, first=8)[0], "bug", answer="quarantined"))
        images.append(poisoned(pictures(1, first=9)[0], "segfault", answer="quarantined"))
        job = deployment.submit(images, chunk_images=4)
        deployment.wait(job)
        damaged = _submit_damaged(deployment)
        deployment.wait(damaged)

        # and is told to stop
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0

    # then each of its lines is JSON and says no secret
    lines = deployment.lines("worker")
    assert all({"time", "level", "logger", "message", "process", "pid"} <= line.keys() for line in lines)
    assert any("Warm shutdown" in line["message"] for line in lines)

    # and there is a line for each chunk that was done, with its facts
    done = [
        line for line in lines if line["message"].startswith("chunk ") and " is done: " in line["message"]
    ]
    with contextlib.closing(Ledger(postgresql_url)) as ledger, ledger.reading() as connection:
        rows = connection.execute(
            sa.select(chunks).where(chunks.c.job_id == job, chunks.c.state == "done")
        ).all()
    assert {
        line["chunk"]: (line["job"], line["model"], line["images"], line["attempt"]) for line in done
    } == {row.id: (job, deployment.model_id, row.images, row.attempts) for row in rows}
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


def _submit_damaged(deployment: Deployment) -> str:
    """A job whose payload is changed before anybody hears of it."""
    job_id = deployment.submit(pictures(2), chunk_images=2, ring=False)
    [path] = (Path(deployment.settings.store) / "payloads" / job_id).iterdir()
    path.write_bytes(b"changed")
    return job_id


def test_a_worker_without_its_broker_says_so_in_json_and_no_secret(deployment: Deployment) -> None:
    broker = f"redis://user:{MARK}%2F@127.0.0.1:1/0"
    with deployment.worker("worker", **{ENV_PREFIX + "BROKER_URL": broker}) as worker:
        until(lambda: deployment.says("worker", "the broker cannot be reached"), "it has tried")
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
    messages = [line["message"] for line in deployment.lines("worker")]
    assert any("redis://user:***@127.0.0.1:1/0" in message for message in messages)
    assert "worker: Warm shutdown (MainProcess)" in messages


@pytest.fixture
def few_pictures(tmp_path: Path) -> Path:
    """Ten pictures, in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in pictures(10):
        (folder / picture.name).write_bytes(picture.data)
    return folder


def test_a_collector_gets_a_job_from_its_submission_to_its_rows(
    deployment: Deployment, postgresql_url: str, collector: Collector, few_pictures: Path
) -> None:
    # given a worker and a collector
    extra = {ENDPOINT_VARIABLE: collector.url}
    with deployment.worker("worker", **extra) as worker:
        until(lambda: deployment.says("worker", "ready."), "the worker is ready")

        # when a job is submitted from the console
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("labelmill")), "submit", str(few_pictures)),
                "--watch",
            ],
            env=os.environ | deployment.environment | extra | {ENV_PREFIX + "CHUNK_IMAGES": "5"},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        job = done.stdout.split()[-1]

        # and the worker ends, which sends what it has left
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0

    # then the collector has one trace: the submission, and below it both chunks with their stages
    [(producer, submitted)] = collector.spans("submit")
    assert producer == "labelmill-producer"
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
    with contextlib.closing(Ledger(postgresql_url)) as ledger, ledger.reading() as connection:
        assert trace in connection.scalars(sa.select(jobs.c.traceparent).where(jobs.c.id == job)).one()
    assert {line["trace"] for line in deployment.lines("worker") if line.get("images")} == {trace}
    assert not any(picture.name in str(collector.requests) for picture in pictures(10))
