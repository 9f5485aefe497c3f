"""A submission and the work on its chunks form one trace; OpenTelemetry keeps its spans in memory here."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, Tracer

from jobs.errors import SourceError
from jobs.ledger import Ledger
from jobs.queue import Publisher
from jobs.schema import jobs
from jobs.traces import CLOSE_SECONDS, ENDPOINT_VARIABLE, NO_TRACER, start_tracing
from producer.sources import SourceImage
from producer.submit import Submitter, submit
from tests.conftest import Broker
from tests.harness import Harness, digits
from tests.programs import run_python


class Traced:
    """Tracing whose spans stay in memory."""

    def __init__(self, service: str) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = start_tracing(service, SimpleSpanProcessor(self.exporter))
        self.close = self.tracing.close

    def spans(self, name: str | None = None) -> list[Any]:
        """Return the finished spans, in the order in which they ended."""
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]


@pytest.fixture
def traced() -> Iterator[Traced]:
    with closing(Traced("labelmill-test")) as traced:
        yield traced


@pytest.fixture
def submit_digits(harness: Harness, publisher: Publisher) -> Callable[[Tracer, int], str]:
    """Return a function: `submit_digits(tracer, 3)` submits three images, one broken, in chunks of two."""

    def submit_digits(tracer: Tracer, count: int) -> str:
        contents = [*digits(count - 1), b"broken"]
        images = (SourceImage(f"hers-{number}.png", data, None) for number, data in enumerate(contents))
        submitter = Submitter(harness.ledger, harness.store, publisher, 2, tracer=tracer)
        return submit(submitter, images).job_id

    return submit_digits


def traceparent_of(ledger: Ledger, job_id: str) -> str | None:
    with ledger.reading() as connection:
        found: str | None = connection.scalar(sa.select(jobs.c.traceparent).where(jobs.c.id == job_id))
        return found


def test_a_job_is_one_trace_from_its_submission_to_its_rows(
    harness: Harness, traced: Traced, submit_digits: Callable[..., str], broker: Broker
) -> None:
    # given a job that was submitted with traces on
    before = time.time_ns()
    job_id = submit_digits(traced.tracing.tracer, 3)

    # then its row has the trace, and its messages do not
    [submitted] = traced.spans()
    assert before <= submitted.start_time
    trace, own = f"{submitted.context.trace_id:032x}", f"{submitted.context.span_id:016x}"
    traceparent = traceparent_of(harness.ledger, job_id) or ""
    assert re.fullmatch(f"00-{trace}-{own}-0[13]", traceparent)
    assert not any(trace.encode() in message for message in broker.messages())

    # when a worker with traces on classifies both chunks in one claim
    there = Traced("labelmill-worker")
    harness.context.tracing = there.tracing
    assert harness.classify() == 3

    # then each chunk is a span below the submission, with the claim's stages below it
    assert submitted.name == "submit"
    assert dict(submitted.attributes) == {
        "labelmill.job": job_id,
        "labelmill.model": harness.model.id,
        "labelmill.images": 3,
    }
    found = there.spans("chunk")
    assert [dict(span.attributes) for span in found] == [
        {
            "labelmill.chunk": row.id,
            "labelmill.job": job_id,
            "labelmill.model": harness.model.id,
            "labelmill.images": images,
            "labelmill.attempt": 1,
            "labelmill.errors": errors,
        }
        for row, images, errors in zip(harness.chunks(job_id), (2, 1), (0, 1), strict=True)
    ]
    for span in found:
        assert span.context.trace_id == submitted.context.trace_id
        assert span.parent.span_id == submitted.context.span_id
        assert span.status.status_code == StatusCode.UNSET
        below = [child for child in there.spans() if child.parent and child.parent == span.context]
        assert [child.name for child in below] == [
            "claim",
            "read",
            "fetch",
            "load",
            "decode",
            "predict",
            "record",
        ]
        # and each stage's time lies within its chunk's time
        assert before <= span.start_time <= span.end_time <= time.time_ns()
        for child in below:
            assert span.start_time <= child.start_time <= child.end_time <= span.end_time
            seconds = child.attributes["labelmill.seconds"]
            assert 0 <= seconds <= (span.end_time - span.start_time) / 1e9 + 0.001

    # and no span has the name of an image
    assert "hers" not in str([span.to_json() for span in [*traced.spans(), *there.spans()]])


def test_an_attempt_that_fails_is_a_failed_span_and_the_next_one_another(
    harness: Harness, traced: Traced, submit_digits: Callable[..., str]
) -> None:
    # given a chunk whose store is unavailable at first
    submit_digits(traced.tracing.tracer, 2)
    harness.context.tracing = traced.tracing
    folder = harness.context.settings.home / "store"
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.write_text("no folder")

    # when it is tried, and again once the store is back
    assert harness.classify() == 0
    folder.unlink()
    elsewhere.rename(folder)
    harness.make_due()
    assert harness.classify() == 2

    # then each attempt has a span, in the same trace
    failed, second = traced.spans("chunk")
    assert failed.status.status_code == StatusCode.ERROR
    assert failed.status.description == "Unavailable"
    assert [child.name for child in traced.spans() if child.parent == failed.context] == ["claim", "read"]
    assert second.attributes["labelmill.attempt"] == 2
    assert second.context.trace_id == failed.context.trace_id


def test_without_tracing_the_calling_programs_trace_is_passed_on(
    harness: Harness, traced: Traced, submit_digits: Callable[..., str]
) -> None:
    # given a program that has a span of its own, and no tracing here
    with traced.tracing.tracer.start_as_current_span("its own") as span:
        job_id = submit_digits(NO_TRACER, 1)

    # then the job belongs to the program's trace
    assert f"{span.get_span_context().trace_id:032x}" in (traceparent_of(harness.ledger, job_id) or "")


@pytest.mark.parametrize("traceparent", [None, "00-nonsense", "x" * 55])
def test_a_job_without_a_usable_trace_gets_one_for_each_chunk(
    harness: Harness, traced: Traced, submit_digits: Callable[..., str], traceparent: str | None
) -> None:
    # given a job that was submitted without a trace, or with an invalid one
    job_id = submit_digits(NO_TRACER, 3)
    assert traceparent_of(harness.ledger, job_id) is None
    with harness.ledger.transaction() as connection:
        connection.execute(jobs.update().values(traceparent=traceparent))

    # when it is classified with traces on
    harness.context.tracing = traced.tracing
    assert harness.classify() == 3

    # then each chunk has a trace of its own
    first, second = traced.spans("chunk")
    assert first.parent is None
    assert first.context.trace_id != second.context.trace_id


def test_a_submission_that_fails_says_so_without_a_name(
    harness: Harness, publisher: Publisher, traced: Traced
) -> None:
    # given images, one of which fails in a later chunk
    def images() -> Iterator[SourceImage]:
        yield from (SourceImage(f"hers-{number}.png", b"1", None, None) for number in range(2))
        raise SourceError("hers-too.png is no file")

    with pytest.raises(SourceError):
        submit(Submitter(harness.ledger, harness.store, publisher, 1, tracer=traced.tracing.tracer), images())

    # then the submission's span has failed, and does not contain the image's name
    [span] = traced.spans()
    assert span.status.status_code == StatusCode.ERROR
    assert span.status.description == "SourceError"
    assert "hers" not in span.to_json()


_LOOK = """
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s")
{hide}
import labelmill.client, producer.submit, worker.predicting.context, worker.predicting.pipeline
from jobs.traces import open_tracing
has_exporter = any(name.startswith("opentelemetry.exporter") for name in sys.modules)
print(open_tracing("labelmill-test").shut_down, has_exporter)
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


def test_if_traces_are_off_their_exporter_is_not_imported() -> None:
    assert _look("").stdout == "None False\n"


def test_without_the_extra_traces_are_off_and_the_log_says_why() -> None:
    done = _look("sys.modules['opentelemetry.sdk'] = None", **{ENDPOINT_VARIABLE: "http://127.0.0.1:1"})
    assert done.stdout.startswith("None")
    assert "pip install '.[otel]'" in done.stderr


_LAST_SPAN = """
from jobs.traces import open_span, open_tracing
import logging, time
{logging}
tracing = open_tracing("labelmill-test")
with open_span(tracing.tracer, "x", began=time.time_ns(), attributes={{}}):
    pass
began = time.monotonic()
tracing.close()
print(time.monotonic() - began)
"""


def _last_span(port: int, logging: str = "") -> tuple[float, str]:
    """Return how many seconds a process with one span takes to close its traces, and its stderr."""
    done = run_python(_LAST_SPAN.format(logging=logging), **{ENDPOINT_VARIABLE: f"http://127.0.0.1:{port}"})
    return float(done.stdout), done.stderr


def test_a_process_does_not_wait_long_for_a_collector_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts connections and never answers
        seconds, _ = _last_span(server.getsockname()[1])
    assert seconds < CLOSE_SECONDS + 1.5


def test_a_collector_that_cannot_be_reached_is_in_the_log_and_not_on_the_screen() -> None:
    seconds, said = _last_span(port=1)
    assert seconds < CLOSE_SECONDS + 1.5
    assert said == ""
    _, logged = _last_span(port=1, logging="logging.basicConfig()")
    assert "WARNING:opentelemetry" in logged
