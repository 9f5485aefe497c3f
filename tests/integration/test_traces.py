"""One trace from a submission to its rows, with OpenTelemetry's own exporter in memory."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from PIL import Image

from jobs.errors import SourceError
from jobs.ledger import Ledger
from jobs.model import MNIST_INPUT, Model
from jobs.queue import Publisher
from jobs.schema import ChunkState, chunks, jobs
from jobs.settings import Settings
from jobs.store import Store
from jobs.traces import CLOSE_SECONDS, ENDPOINT_VARIABLE, Tracing, open_tracing
from producer.retry import retry
from producer.sources import SourceImage
from producer.submit import submit
from tests.conftest import Broker
from tests.registering import register_digits
from worker.context import WorkerContext
from worker.predicting.pipeline import classify_chunk


class Traced(Tracing):
    """Traces whose spans stay in memory."""

    def __init__(self, service: str) -> None:
        self.exporter = InMemorySpanExporter()
        super().__init__(service, SimpleSpanProcessor(self.exporter))

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Those that are over, in the order in which they ended."""
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]


@pytest.fixture
def traced() -> Iterator[Traced]:
    with closing(Traced("labelmill-test")) as traced:
        yield traced


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of the right shape, untrained."""
    from worker.learning.training import build, save

    path = tmp_path_factory.mktemp("model") / "model.keras"
    save(build("mlp", MNIST_INPUT, 10), path)
    return path.read_bytes()


@pytest.fixture
def model(ledger: Ledger, store: Store, model_file: bytes) -> Model:
    return register_digits(ledger, store, model_file, champion=True)


@pytest.fixture
def bench(settings: Settings, model: Model) -> Iterator[WorkerContext]:  # noqa: ARG001 -- must be registered
    with WorkerContext(settings, processes=1) as bench:
        yield bench


@pytest.fixture
def submit_digits(
    ledger: Ledger, store: Store, publisher: Publisher, model: Model
) -> Callable[[Tracing | None, int], str]:
    """`submit_digits(tracing, 3)`: a job of so many images, the last of them broken, two a chunk."""

    def submit_digits(tracing: Tracing | None, count: int) -> str:
        assert model
        images = (
            SourceImage(f"hers-{number}.png", b"broken" if number == count - 1 else _png(), None, None)
            for number in range(count)
        )
        return submit(images, ledger=ledger, store=store, publisher=publisher, chunk_images=2, tracing=tracing).job_id

    return submit_digits


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((28, 28), 99, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _chunk_ids(ledger: Ledger, job_id: str) -> list[str]:
    with ledger.reading() as connection:
        wanted = sa.select(chunks.c.id).where(chunks.c.job_id == job_id).order_by(chunks.c.first_index)
        return list(connection.scalars(wanted))


def _traceparent(ledger: Ledger, job_id: str) -> str | None:
    with ledger.reading() as connection:
        found: str | None = connection.scalar(sa.select(jobs.c.traceparent).where(jobs.c.id == job_id))
        return found


def _trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def test_of_a_chunk_that_was_left_the_images_are_told_that_it_recorded(
    ledger: Ledger,
    bench: WorkerContext,
    traced: Traced,
    submit_digits: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given chunks of two images and of one, of which any takes long for its time limit
    monkeypatch.setattr("worker.predicting.lookout.LONG_SHARE", 0.0)
    job_id = submit_digits(traced, 3)
    there = Traced("labelmill-worker")
    bench.tracing = there

    # when they are classified, and then the rest of the first
    for _ in range(2):
        for chunk_id in _chunk_ids(ledger, job_id):
            classify_chunk(chunk_id, bench)

    # then all spans together tell of each image once
    found = [dict(span.attributes or {})["labelmill.images"] for span in there.spans("chunk")]
    assert found == [1, 1, 1]


def test_a_job_is_one_trace_from_its_submission_to_its_rows(
    ledger: Ledger, bench: WorkerContext, traced: Traced, submit_digits: Callable[..., str], broker: Broker
) -> None:
    # given a job that was submitted where traces are made
    before = time.time_ns()
    job_id = submit_digits(traced, 3)

    # then its row carries the trace, and its messages do not
    [submitted] = traced.spans()
    assert submitted.start_time is not None
    assert before <= submitted.start_time
    traceparent = _traceparent(ledger, job_id)
    assert traceparent is not None
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", traceparent)
    assert submitted.context is not None
    assert traceparent.split("-")[1:3] == [
        f"{submitted.context.trace_id:032x}",
        f"{submitted.context.span_id:016x}",
    ]
    assert not any(traceparent.split("-")[1].encode() in message for message in broker.messages())

    # when a worker that makes traces classifies its chunks
    there = Traced("labelmill-worker")
    bench.tracing = there
    for chunk_id in _chunk_ids(ledger, job_id):
        classify_chunk(chunk_id, bench)

    # then each chunk is a span below the submission, with its stages below it
    assert submitted.name == "submit"
    assert dict(submitted.attributes or {}) == {
        "labelmill.job": job_id,
        "labelmill.model": bench_model(ledger, job_id),
        "labelmill.images": 3,
    }
    found = there.spans("chunk")
    assert [dict(span.attributes or {}) for span in found] == [
        {
            "labelmill.chunk": chunk_id,
            "labelmill.job": job_id,
            "labelmill.model": bench_model(ledger, job_id),
            "labelmill.images": images,
            "labelmill.attempt": 1,
            "labelmill.errors": errors,
        }
        for chunk_id, images, errors in zip(_chunk_ids(ledger, job_id), (2, 1), (0, 1), strict=True)
    ]
    # of the second no image came as far as the model
    expected = (
        ["claim", "read", "load", "decode", "predict", "record"],
        ["claim", "read", "load", "decode", "record"],
    )
    for span, stages in zip(found, expected, strict=True):
        assert _trace_of(span) == _trace_of(submitted)
        assert span.parent is not None
        assert span.parent.span_id == submitted.context.span_id
        assert span.status.status_code == StatusCode.UNSET
        assert span.context is not None
        below = [child for child in there.spans() if child.parent and child.parent == span.context]
        assert [child.name for child in below] == stages
        # and the times are the real ones, one inside the other
        assert span.start_time is not None
        assert span.end_time is not None
        assert before <= span.start_time <= span.end_time <= time.time_ns()
        for child in below:
            assert child.start_time is not None
            assert child.end_time is not None
            assert span.start_time <= child.start_time <= child.end_time <= span.end_time
            assert child.attributes
            assert (
                0
                <= float(child.attributes["labelmill.seconds"])
                <= (  # type: ignore[arg-type]
                    span.end_time - span.start_time
                )
            )

    # and no image's name is in any of it
    assert "hers" not in str([span.to_json() for span in [*traced.spans(), *there.spans()]])


def bench_model(ledger: Ledger, job_id: str) -> str:
    with ledger.reading() as connection:
        found: str = connection.scalars(sa.select(jobs.c.model_id).where(jobs.c.id == job_id)).one()
        return found


def test_an_attempt_that_fails_is_a_failed_span_and_the_next_one_another(
    ledger: Ledger, bench: WorkerContext, store: Store, traced: Traced, submit_digits: Callable[..., str]
) -> None:
    # given a chunk whose payload is not to be had at first
    job_id = submit_digits(traced, 2)
    [chunk_id] = _chunk_ids(ledger, job_id)
    bench.tracing = traced
    folder = bench.settings.home / "store"
    away = folder.rename(folder.with_name("away"))
    folder.write_text("no folder")

    # when it is tried, and once more when it is there again
    assert classify_chunk(chunk_id, bench) == 0
    folder.unlink()
    away.rename(folder)
    with ledger.transaction() as connection:
        connection.execute(chunks.update().values(state=ChunkState.PENDING, ring_after=None))
    assert store
    assert classify_chunk(chunk_id, bench) == 2

    # then there is a span for each attempt, in the same trace
    failed, second = traced.spans("chunk")
    assert failed.status.status_code == StatusCode.ERROR
    assert failed.status.description == "Unavailable"
    assert [child.name for child in traced.spans() if child.parent == failed.context] == ["claim", "read"]
    assert second.attributes
    assert second.attributes["labelmill.attempt"] == 2
    assert _trace_of(second) == _trace_of(failed)


@pytest.mark.parametrize("traceparent", [None, "00-nonsense", "x" * 55])
def test_a_job_without_a_usable_trace_gets_one_a_chunk(
    ledger: Ledger,
    bench: WorkerContext,
    traced: Traced,
    submit_digits: Callable[..., str],
    traceparent: str | None,
) -> None:
    # given a job that was submitted without traces, or with what is none
    job_id = submit_digits(None, 3)
    assert _traceparent(ledger, job_id) is None
    with ledger.transaction() as connection:
        connection.execute(jobs.update().values(traceparent=traceparent))

    # when it is classified where traces are made
    bench.tracing = traced
    for chunk_id in _chunk_ids(ledger, job_id):
        assert classify_chunk(chunk_id, bench)

    # then each chunk is a trace of its own
    first, second = traced.spans("chunk")
    assert first.parent is None
    assert _trace_of(first) != _trace_of(second)


def test_a_submission_that_fails_says_so_without_a_name(
    ledger: Ledger, store: Store, publisher: Publisher, model: Model, traced: Traced
) -> None:
    # given images of which one of a later chunk cannot be read
    def images() -> Iterator[SourceImage]:
        yield from (SourceImage(f"hers-{number}.png", b"1", None, None) for number in range(2))
        raise SourceError("hers-too.png is no file")

    assert model
    with pytest.raises(SourceError):
        submit(images(), ledger=ledger, store=store, publisher=publisher, chunk_images=1, tracing=traced)

    # then its span has failed, and says no name
    [span] = traced.spans()
    assert span.status.status_code == StatusCode.ERROR
    assert span.status.description == "SourceError"
    assert "hers" not in span.to_json()


def test_a_retry_is_a_submission_with_a_trace_of_its_own(
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    bench: WorkerContext,
    traced: Traced,
    submit_digits: Callable[..., str],
) -> None:
    job_id = submit_digits(traced, 1)
    [chunk_id] = _chunk_ids(ledger, job_id)
    assert classify_chunk(chunk_id, bench) == 1
    retried = retry(
        job_id, failed_only=True, ledger=ledger, store=store, publisher=publisher, chunk_images=2, tracing=traced
    )
    assert retried.submitted is not None
    first, second = traced.spans("submit")
    assert _trace_of(first) != _trace_of(second)
    assert f"{_trace_of(second):032x}" in (_traceparent(ledger, retried.submitted.job_id) or "")


def test_a_submission_joins_the_trace_of_the_program_that_submits(
    ledger: Ledger, traced: Traced, submit_digits: Callable[..., str]
) -> None:
    # given a program with traces of its own
    program = TracerProvider(shutdown_on_exit=False).get_tracer("a program")
    with program.start_as_current_span("its own") as span:
        job_id = submit_digits(traced, 1)

    # then the job is a part of them
    assert f"{span.get_span_context().trace_id:032x}" in (_traceparent(ledger, job_id) or "")


def test_opentelemetry_can_be_told_to_make_none(
    ledger: Ledger, submit_digits: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with closing(Traced("labelmill-test")) as traced:
        job_id = submit_digits(traced, 1)
    assert _traceparent(ledger, job_id) is None


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_process_is_called_as_opentelemetry_was_told(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name is not None:
        monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    with closing(Traced("labelmill-worker")) as traced:
        with traced.span("x", began=time.time_ns()):
            pass
        [span] = traced.spans()
    assert span.resource.attributes["service.name"] == (name or "labelmill-worker")


def test_nothing_is_made_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
    assert open_tracing("labelmill-test") is None


_LOOK = """
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s")
{hide}
import labelmill.client, producer.submit, worker.context, worker.predicting.pipeline
from jobs.traces import open_tracing
print(open_tracing("labelmill-test"), any(name.startswith("opentelemetry.exporter") for name in sys.modules))
"""


def _look(hide: str, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-c", _LOOK.format(hide=hide)],
        env={name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )


def test_where_traces_are_off_their_exporter_is_not_even_imported() -> None:
    # (redis-py imports other parts of OpenTelemetry wherever it finds them)
    assert _look("").stdout == "None False\n"


def test_without_the_extra_traces_are_off_and_the_log_says_why() -> None:
    done = _look("sys.modules['opentelemetry'] = None", **{ENDPOINT_VARIABLE: "http://127.0.0.1:1"})
    assert done.stdout.startswith("None")
    assert "pip install '.[otel]'" in done.stderr


_LAST_SPAN = """
from jobs.traces import open_tracing
import logging, time
{logging}
tracing = open_tracing("labelmill-test")
with tracing.span("x", began=time.time_ns()):
    pass
began = time.monotonic()
tracing.close()
print(time.monotonic() - began)
"""


def _last_span(port: int, logging: str = "") -> tuple[float, str]:
    """How long a process with one span waits at its end, in seconds; and what it has on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _LAST_SPAN.format(logging=logging)],
        env=os.environ | {ENDPOINT_VARIABLE: f"http://127.0.0.1:{port}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    return float(done.stdout), done.stderr


def test_a_process_does_not_wait_long_for_a_collector_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections, and never answers
        seconds, _ = _last_span(server.getsockname()[1])
    assert seconds < CLOSE_SECONDS + 1.5


def test_a_collector_that_is_away_is_for_the_log_and_not_for_the_screen() -> None:
    seconds, said = _last_span(port=1)
    assert seconds < CLOSE_SECONDS + 1.5
    assert said == ""
    _, logged = _last_span(port=1, logging="logging.basicConfig()")
    assert "WARNING:opentelemetry" in logged
