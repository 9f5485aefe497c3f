"""A collector of traces for tests: OTLP over HTTP, on loopback.

A pytest plugin (tests/conftest.py names it).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.receiver import serving


class Collector:
    """What was sent to it."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[ExportTraceServiceRequest] = []

    def spans(self, name: str) -> list[tuple[str, Any]]:
        """The spans of this name, each with the name of the service that it comes from."""
        return [
            (attributes(resource.resource)["service.name"], span)
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.name == name
        ]


def attributes(carrier: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as plain values."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in carrier.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: the test's output is for the test."""

    with serving(Handler) as port:
        collector.url = f"http://127.0.0.1:{port}"
        yield collector
