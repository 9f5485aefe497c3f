"""Traces of a job, from its submission to its results, for OpenTelemetry.

Tracing is off, at no cost, unless the extra `otel` is installed and `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A
submission is one span, and each attempt at a chunk is another of the same trace. The job's row carries the
trace's context (`jobs.traceparent`), so that messages hold only ids. No span contains an image's name.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobs.extras import install_hint

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

#: OpenTelemetry's own variable. Its packages read the others.
ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"

#: How long a process waits at its end until its last spans are sent. If no collector answers, they are lost.
CLOSE_SECONDS: Final = 3.0

_HEADER: Final = "traceparent"


class Part(NamedTuple):
    """A part of a span: a child span that has ended."""

    name: str
    began: int  # nanoseconds since 1970
    ended: int
    seconds: float  # spent on this part, which may be interleaved with others


def open_tracing(service: str) -> Tracing | None:
    """Return the tracing of this process, or None if it is off.

    Call it after a fork, not before: it starts the thread that sends the spans.
    """
    if not os.environ.get(ENDPOINT_VARIABLE):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.info("no traces, though %s is set: %s", ENDPOINT_VARIABLE, install_hint("otel"))
        return None
    # An unavailable collector must not print errors on the screen of a person who submits.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    return Tracing(service, BatchSpanProcessor(OTLPSpanExporter()))


class Tracing:
    """The tracing of one process: makes its spans and sends them."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        """Start tracing under the name `service`, unless OTEL_SERVICE_NAME gives another."""
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        version = metadata.version("labelmill")
        ours = Resource.create({"service.name": service, "service.version": version})
        # A provider of our own, because a program that uses `Client` may have set up a global one.
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("labelmill", version)
        atexit.register(self.close)

    @contextmanager
    def span(self, name: str, *, began: int, **attributes: str | int) -> Iterator[Span]:
        """Open a span around the block, as a child of the calling program's current span.

        `began` is when it began, in nanoseconds since 1970, which may be before this call. If the block
        raises, the span fails with the exception's class only, because its message may contain an image's
        name.
        """
        from opentelemetry.trace import Status, StatusCode

        with self._tracer.start_as_current_span(
            name,
            start_time=began,
            attributes=_named(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def record(
        self,
        name: str,
        *,
        traceparent: str | None,
        began: int,
        ended: int,
        attributes: Mapping[str, str | int],
        parts: list[Part],
        error: str | None = None,
    ) -> None:
        """Record a span that has ended, with its parts, in the trace that `traceparent` names.

        If `traceparent` is None, the span begins a trace of its own. Times are nanoseconds since 1970.
        """
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        span = self._tracer.start_span(
            name, context=_context(traceparent), start_time=began, attributes=_named(attributes)
        )
        below = set_span_in_context(span)
        for part in parts:
            attributes_of_part = {"labelmill.seconds": round(part.seconds, 6)}
            child = self._tracer.start_span(
                part.name, context=below, start_time=part.began, attributes=attributes_of_part
            )
            child.end(part.ended)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(ended)

    def close(self) -> None:
        """Send the remaining spans, for at most CLOSE_SECONDS. Calling it again does nothing."""
        atexit.unregister(self.close)
        # In a thread, because the provider waits for half a minute if no collector answers.
        closing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def traceparent_of(span: Span) -> str | None:
    """Return the span as a W3C Trace Context header of 55 characters, to be passed on unchanged.

    Return None if OpenTelemetry is configured to make none.
    """
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get(_HEADER)


def _context(traceparent: str | None) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {_HEADER: traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _named(attributes: Mapping[str, str | int]) -> dict[str, Any]:
    return {f"labelmill.{name}": value for name, value in attributes.items()}
