"""Traces of a job, from its submission to its results, for OpenTelemetry.

Tracing is off unless the extra `otel` is installed and `OTEL_EXPORTER_OTLP_ENDPOINT` is set: OpenTelemetry's
own no-op tracer then makes no spans, and passes the calling program's trace on. A submission is one span, and
each attempt at a chunk is another of the same trace. The job's row carries the trace's context
(`jobs.traceparent`), so that messages hold only ids. No span contains an image's name.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.trace import NoOpTracer, Span, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jobs.extras import install_hint

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

logger = logging.getLogger(__name__)

#: OpenTelemetry's own variable. Its packages read the others.
ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"

#: How long a process waits at its end until its last spans are sent. If no collector answers, they are lost.
CLOSE_SECONDS: Final = 3.0

#: The tracer while tracing is off.
NO_TRACER: Final[Tracer] = NoOpTracer()

_HEADER: Final = "traceparent"


@dataclass(frozen=True, eq=False)
class Tracing:
    """The tracing of one process: its tracer, and the function that sends the last spans, if it is on."""

    tracer: Tracer = NO_TRACER
    shut_down: Callable[[], None] | None = None

    def close(self) -> None:
        """Send the remaining spans, for at most CLOSE_SECONDS. Calling it again does nothing."""
        if self.shut_down is None:
            return
        atexit.unregister(self.close)
        # In a thread, because the provider waits for half a minute if no collector answers.
        closing = threading.Thread(target=self.shut_down, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def open_tracing(service: str) -> Tracing:
    """Return the tracing of this process.

    Call it after a fork, not before: it starts the thread that sends the spans.
    """
    if not os.environ.get(ENDPOINT_VARIABLE):
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.info("no traces, though %s is set: %s", ENDPOINT_VARIABLE, install_hint("otel"))
        return Tracing()
    # An unavailable collector must not print errors on the screen of a person who submits.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    return start_tracing(service, BatchSpanProcessor(OTLPSpanExporter()))


def start_tracing(service: str, processor: SpanProcessor) -> Tracing:
    """Send this process's spans to the processor, under the name `service` or that of OTEL_SERVICE_NAME."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    version = metadata.version("labelmill")
    ours = Resource.create({"service.name": service, "service.version": version})
    # A provider of our own, because a program that uses `Client` may have set up a global one.
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracing = Tracing(provider.get_tracer("labelmill", version), provider.shutdown)
    atexit.register(tracing.close)
    return tracing


@contextmanager
def open_span(tracer: Tracer, name: str, *, began: int, attributes: Mapping[str, str]) -> Iterator[Span]:
    """Open a span around the block, as a child of the calling program's current span.

    `began` is when it began, in nanoseconds since 1970, which may be before this call. If the block raises,
    the span fails with the exception's class only, because its message may contain an image's name.
    """
    with tracer.start_as_current_span(
        name,
        start_time=began,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def traceparent_of(span: Span) -> str | None:
    """Return the span as a W3C Trace Context header of 55 characters, to be passed on unchanged.

    Return None if there is no trace.
    """
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get(_HEADER)


def context_of(traceparent: str | None) -> Context:
    """Return the context whose spans belong to this trace, or each to a trace of its own."""
    carrier = {} if traceparent is None else {_HEADER: traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())
