"""`labelmill metrics`: serve metrics for Prometheus."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Annotated, Final

import typer

from jobs.settings import Settings
from labelmill.console.terminal import examples, report_errors, say
from labelmill.server.serving import http_url, parse_address

app = typer.Typer(add_completion=False)

#: How soon a signal ends the command at the latest.
_WAIT_SECONDS: Final = 1.0


@app.command(epilog=examples("labelmill metrics", "labelmill metrics --listen 0.0.0.0:9187"))
@report_errors
def metrics(
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where to listen. Port 0: any free port.")
    ] = "127.0.0.1:9187",
) -> None:
    """Serve metrics for Prometheus, at /metrics, until it is stopped.

    Each scrape reads the ledger and the broker, so one exporter is enough for a whole deployment. If one of
    them cannot be reached, the metrics say so. The first line names the address.
    """
    from prometheus_client import CollectorRegistry

    from labelmill.operations.metrics import LabelmillCollector
    from labelmill.server.exporter import Exporter

    address, port = parse_address(listen)
    over = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        over.set()

    # The first process of a container ignores signals that it does not handle.
    signal.signal(signal.SIGTERM, end)
    registry = CollectorRegistry()
    registry.register(LabelmillCollector(Settings.load()))
    with Exporter(registry, address=address, port=port) as exporter:
        say(f"metrics at {http_url(address, exporter.port)}/metrics; Ctrl-C ends it")
        # If another thread receives the signal, Python handles it only once this wait returns.
        while not over.wait(_WAIT_SECONDS):
            pass
