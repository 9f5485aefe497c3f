"""`labelmill serve`: serve the HTTP API."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.errors import UserError
from jobs.extras import install_hint
from jobs.settings import Settings
from labelmill.console.terminal import examples, report_errors
from labelmill.server.serving import DEFAULT_LISTEN, is_server_installed, open_listener, parse_address

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("labelmill serve", "labelmill serve --listen 0.0.0.0:8000"))
@report_errors
def serve(
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS:PORT", help="Where to listen. Port 0: any free port; fd:N: an inherited socket."
        ),
    ] = DEFAULT_LISTEN,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS:PORT", help="Where to serve metrics of the requests, for Prometheus."),
    ] = None,
) -> None:
    """Serve the HTTP API and the pages until it is stopped.

    The API's resources are those of OpenAI's Batch API, below /v1. Requests need a key, which `labelmill keys
    create` makes. Broker, ledger, store and workers must be available. Needs the extra `server`.

    Two more processes read the images of new batches. Any number of servers can share a ledger, a store and a
    broker. SIGTERM lets requests finish for up to 20 seconds. Server names other than localhost must be in
    LABELMILL_API_HOSTS.
    """
    if not is_server_installed():
        raise UserError(f"The HTTP API needs its server: {install_hint('server')}.")
    from labelmill.server import running
    from labelmill.web.site import create_site

    settings = Settings.load()
    with open_listener(listen) as listening:
        running.serve(create_site, settings, listening, None if metrics is None else parse_address(metrics))
