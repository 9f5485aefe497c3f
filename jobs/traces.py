"""Traces of a job, from its submission to its rows, for those who collect them with OpenTelemetry.

Off, which costs nothing, unless the extra `otel` is installed and `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A
submission is one span, and each attempt at a chunk another one of the same trace: the job's row carries the
trace's context (`jobs.traceparent`), so that messages stay ids alone. No span has an image's name in it.
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

#: OpenTelemetry's own variable; its others are read by its packages.
ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"

#: How long a process that ends waits for its last spans to be sent: where nobody takes them, they are lost.
CLOSE_SECONDS: Final = 3.0

_HEADER: Final = "traceparent"


class Part(NamedTuple):
    """A span below another, that is over."""

    name: str
    began: int  # nanoseconds since 1970
    ended: int
    seconds: float  # of it that were spent on this part, which may be interleaved with another


def open_tracing(service: str) -> Tracing | None:
    """What this process's spans are made with; None where none are to be made. To be called after a fork, not
    before one: it starts a thread, which sends them.
    """
    if not os.environ.get(ENDPOINT_VARIABLE):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.info("no traces, though %s is set: %s", ENDPOINT_VARIABLE, install_hint("otel"))
        return None
    # A collector that is away is in the log of whoever has one, not on the screen of a person who submits.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    return Tracing(service, BatchSpanProcessor(OTLPSpanExporter()))


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        """`service`: how the traces call this process, unless OTEL_SERVICE_NAME says."""
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        version = metadata.version("labelmill")
        ours = Resource.create({"service.name": service, "service.version": version})
        # A provider of our own: a program that uses `Client` may have set one up for itself.
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("labelmill", version)
        atexit.register(self.close)

    @contextmanager
    def span(self, name: str, *, began: int, **attributes: str | int) -> Iterator[Span]:
        """A span around what happens inside, below the one that the calling program is in; it may have begun
        earlier, `began` is in nanoseconds since 1970. An exception makes it a failed one, with its class
        alone: its words may have an image's name in them.
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
        """A span that is over, with its parts, in the trace that `traceparent` names; in a trace of its own
        where that is none. Times are nanoseconds since 1970.
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
        """Sends what is left, for a moment. Calling it again does nothing."""
        atexit.unregister(self.close)
        # By a thread, because the provider waits for half a minute where nobody answers.
        closing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def traceparent_of(span: Span) -> str | None:
    """The span as W3C's Trace Context writes it: 55 characters, to be passed on as they are. None where
    OpenTelemetry was told to make none.
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
