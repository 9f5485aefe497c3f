"""`labelmill up`: the local stack in the foreground."""

from __future__ import annotations

import socket
import sys
from contextlib import nullcontext
from typing import Annotated, Final

import typer
from rich.text import Text

from jobs.extras import require_tensorflow
from jobs.network.urls import without_secrets
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.client.schedules import ScheduleStatus
from labelmill.console.terminal import (
    err,
    examples,
    next_steps,
    pluralize,
    printable_lines,
    report_errors,
    say,
)
from labelmill.local.celery_commands import settings_with
from labelmill.local.logs import MAX_LOG_BYTES, Event
from labelmill.local.stack import Stack, lock_home
from labelmill.server.serving import (
    API_KEY_FILE,
    DEFAULT_LISTEN,
    http_url,
    is_server_installed,
    make_first_key,
    open_listener,
    sign_in_path,
)

app = typer.Typer(add_completion=False)

#: Time between two checks of the processes.
_CHECK_SECONDS: Final = 0.5

_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}


@app.command(
    epilog=examples(
        "labelmill up",
        "labelmill up --listen 127.0.0.1:8001",
        "LABELMILL_HOME=/data/mill labelmill up --processes 8",
    )
)
@report_errors
def up(
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes classify. Default: LABELMILL_PROCESSES.")
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where the API listens, as for `labelmill serve`.")
    ] = DEFAULT_LISTEN,
) -> None:
    """Run the local stack in the foreground: broker, workers, trainer, beat, webhook sender, API and pages.

    Prints one line per event; with LABELMILL_LOG_FORMAT=json, the JSON lines of the logs. The complete logs
    are in the state folder's logs/. A process that dies is restarted. Unfinished jobs continue. Worker and
    trainer give way to other programs if all cores are busy, as LABELMILL_NICENESS says.

    Ctrl-C or SIGTERM stops everything: workers finish their claims, for at most 30 seconds. A second Ctrl-C
    stops immediately.

    Open the address of the pages in a browser on this machine: it signs in once, within an hour. API and
    pages need the extra `server`. If the ledger has no key yet, one is made and kept in the state folder's
    file api-key; it works on this machine only. If LABELMILL_BROKER_URL is set, no broker is started;
    otherwise only one `up` can run per home.
    """
    settings = settings_with(processes)
    require_tensorflow("A worker")
    lock_home(settings).close()  # if a stack is up here, say that, not that its port is taken
    with Client(settings) as client:
        has_model = bool(client.models())
        schedules = client.schedules()
        api, pages = open_listener(listen) if is_server_installed() else None, None
        if api is not None:
            make_first_key(client)
            pages = http_url(*api.getsockname()[:2]) + sign_in_path(client)
    stack = Stack(settings, trainer=True, beat=True, webhooks=True, api=api, with_events=True)
    try:
        with stack, api or nullcontext():
            for line in _startup_lines(settings, schedules, api, pages, has_model=has_model):
                say(line)
            try:
                while True:
                    stack.restart_ended()
                    if event := stack.next_event(_CHECK_SECONDS):
                        _print_event(event, settings)
            except KeyboardInterrupt:
                say("stopping when the current chunks are done; Ctrl-C again stops immediately")
    except KeyboardInterrupt:
        pass  # while it was starting
    while event := stack.next_event(0):
        _print_event(event, settings)
    say("all stopped")


def _startup_lines(
    settings: Settings,
    schedules: list[ScheduleStatus],
    api: socket.socket | None,
    pages: str | None,
    *,
    has_model: bool,
) -> list[str]:
    """Return lines with what runs, where (paths in the state folder), and the commands to try next."""
    broker = "Valkey, broker/" if settings.embedded_broker else _without_secrets(settings.broker)
    ledger = "SQLite, ledger.sqlite3" if settings.embedded_ledger else _without_secrets(settings.ledger_url)
    store = "store/" if settings.store_url is None else _without_secrets(settings.store_url)
    times = [f"{each.schedule.dataset} {each.schedule.cron}" for each in schedules if each.schedule.cron]
    counts = [
        f"{each.schedule.dataset} after {each.schedule.after_corrections:,} corrections"
        for each in schedules
        if each.schedule.after_corrections
    ]
    trained = [", ".join(times) + " (cron, UTC)"] if times else []
    retrain = "; ".join(trained + counts) or "no retraining"
    key = f", key in {API_KEY_FILE}" if (settings.home / API_KEY_FILE).exists() else ""
    model = ("retrain --wait", "train a new model") if has_model else ("train", "make the first model")
    return [
        f"up in {settings.home}",
        f"  broker   {broker}",
        f"  worker   {pluralize(settings.processes, 'process', 'processes')} to classify images",
        "  trainer  1 process to train models",
        "  webhooks 1 process to send webhooks",
        f"  beat     schedule: {retrain}",
        *([f"  api      {http_url(*api.getsockname()[:2])}/v1{key}"] if api else []),
        *([f"  pages    {pages}"] if pages else []),
        f"  ledger   {ledger}",
        f"  store    {store}",
        f"  logs     logs/*.log, at most {2 * MAX_LOG_BYTES // 1024**2} MiB each",
        "What to type next, in another terminal:",
        next_steps(
            *([] if has_model else [model]),
            ("submit FOLDER --watch", "classify the images in a folder"),
            ("jobs", "list the jobs"),
            *([model] if has_model else []),
            ("doctor", "find out what is wrong"),
        ),
        "Ctrl-C stops everything.",
    ]


def _without_secrets(url: str | None) -> str:
    return without_secrets(str(url), url)


def _print_event(event: Event, settings: Settings) -> None:
    """Print an event in one line; on a terminal, cut it to the width. The log file has all of it."""
    if settings.log_format == "json" and event.text.startswith("{"):
        sys.stderr.write(f"{event.text}\n")
        sys.stderr.flush()
        return
    line = Text(f"{event.part:<8} {printable_lines(event.text)}", style=_STYLES.get(event.level, ""))
    if err.is_terminal:
        line.truncate(err.width, overflow="ellipsis")
    err.print(line)
