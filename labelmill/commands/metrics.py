"""`labelmill metrics`: what Prometheus scrapes."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Annotated

import typer

from jobs.errors import UserError
from jobs.settings import Settings
from labelmill.console import examples, say, tells_errors

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill metrics", "labelmill metrics --listen 0.0.0.0:9187"))
@tells_errors
def metrics(
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where to answer. Port 0: any that is free.")
    ] = "127.0.0.1:9187",
) -> None:
    """Serve metrics for Prometheus, at /metrics, until it is stopped.

    Each scrape asks ledger and broker, so one of these is enough for a whole deployment. Where one of them is
    away it says so, and answers all the same.
    """
    from labelmill.metrics import Exporter

    address, port = _address(listen)
    over = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        over.set()

    # Said aloud: the first process of a container is told nothing by a signal that it does not handle.
    signal.signal(signal.SIGTERM, end)
    with Exporter(Settings.load(), address=address, port=port) as exporter:
        # Without the brackets nobody could tell where an IPv6 address ends and the port begins.
        host = f"[{address}]" if ":" in address else address
        say(f"metrics at http://{host}:{exporter.port}/metrics; Ctrl-C ends it")
        over.wait()


def _address(listen: str) -> tuple[str, int]:
    address, _, port = listen.rpartition(":")
    if not address or not port.isdecimal() or int(port) > 65_535:
        raise UserError(f"{listen} is no address with a port, such as 127.0.0.1:9187.")
    return address.removeprefix("[").removesuffix("]"), int(port)
