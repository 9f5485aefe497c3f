"""`labelmill webhooks`: the receivers of webhooks, their secrets, and what was sent to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from jobs.errors import UserError
from jobs.ledger.api.deliveries import Delivery, list_deliveries
from jobs.ledger.api.projects import check_project
from jobs.ledger.api.webhooks import (
    Endpoint,
    add_endpoint,
    get_endpoint,
    list_endpoints,
    remove_endpoint,
    rotate_secret,
    secret_of_batches,
)
from jobs.ledger.webhook_outbox import report_test
from jobs.network.webhooks import Event, check_receiver, check_secret
from jobs.options import DEFAULT_PROJECT
from labelmill.client import Client
from labelmill.commands.groups import listing_group
from labelmill.commands.options import AsJsonList, OnlyProjectOption, ProjectOption
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, print_data, report_errors, say

app = listing_group(
    "List the receivers of webhooks, add or remove one, change its secret, or list what was sent.",
    "labelmill webhooks",
    "labelmill webhooks add https://example.org/hook --event run.finished",
)

_ENDPOINTS: Final = (
    Column("id", lambda each: each.id),
    Column("url", lambda each: each.url or "webhook_url of batches", min_width=20),
    Column("project", lambda each: each.project, leave_out=3),
    Column("events", lambda each: _events_of(each), min_width=8, leave_out=2),
    Column("added (UTC)", lambda each: short_time(each.created_at), leave_out=1),
    Column("disabled (UTC)", lambda each: short_time(each.disabled_at)),
)

_DELIVERIES: Final = (
    Column("id", lambda each: each.id),
    Column("event", lambda each: each.event),
    Column("url", lambda each: each.url, min_width=20, leave_out=2),
    Column("state", lambda each: each.state),
    Column("attempts", lambda each: str(each.attempts), right=True),
    Column("answer", lambda each: _answer_of(each), min_width=12),
    Column("next (UTC)", lambda each: short_time(each.due_at), leave_out=1),
)

IdArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id, from the list.")]

SecretFileOption = Annotated[
    Path | None,
    typer.Option(
        "--secret-file", metavar="FILE", help="Use the secret in this file: `whsec_...`. Default: a new one."
    ),
]


@app.command("list", epilog=examples("labelmill webhooks list --json"))
@report_errors
def list_all(project: OnlyProjectOption = None, as_json: AsJsonList = False) -> None:
    """List the receivers, without their secrets."""
    with Client() as client, client.ledger.reading() as connection:
        found = list_endpoints(connection, project=project)
    print_rows(_ENDPOINTS, found, as_json=as_json)


@app.command(
    epilog=examples(
        "labelmill webhooks add https://example.org/hook",
        "labelmill webhooks add https://example.org/hook --event batch.completed --event batch.failed",
    )
)
@report_errors
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to send them: https://...")],
    event: Annotated[
        list[Event] | None, typer.Option(help="An event to send; repeatable. Default: all.")
    ] = None,
    project: ProjectOption = None,
    secret_file: SecretFileOption = None,
) -> None:
    """Add a receiver, and print the secret with which it verifies messages, the only word on stdout."""
    given = _secret_in(secret_file)
    with Client() as client:
        check_receiver(url, client.settings.private_hosts)
        with client.ledger.transaction() as connection:
            endpoint, secret = add_endpoint(
                connection, url, event or (), project=project or DEFAULT_PROJECT, secret=given
            )
    say(f"webhook {endpoint.id} for {_events_of(endpoint)}; give the secret to the receiver")
    print_data(secret)


@app.command(epilog=examples("labelmill webhooks remove 06h0w4r0rf0dkckt"))
@report_errors
def remove(webhook: IdArgument) -> None:
    """Remove a receiver and all its messages, sent or not."""
    with Client() as client, client.ledger.transaction() as connection:
        remove_endpoint(connection, webhook)
    say(f"webhook {webhook} is removed")
    print_data(webhook)


@app.command(epilog=examples("labelmill webhooks rotate 06h0w4r0rf0dkckt"))
@report_errors
def rotate(webhook: IdArgument, secret_file: SecretFileOption = None) -> None:
    """Give a receiver a new secret, and print it, the only word on stdout.

    For 24 hours, messages are signed with both secrets.
    """
    given = _secret_in(secret_file)
    with Client() as client, client.ledger.transaction() as connection:
        secret = rotate_secret(connection, webhook, given)
    say(f"webhook {webhook} has a new secret; the old one signs, too, for 24 hours")
    print_data(secret)


@app.command(epilog=examples("labelmill webhooks secret", "labelmill webhooks secret --project birds"))
@report_errors
def secret(project: ProjectOption = None) -> None:
    """Print the secret that signs messages to the `webhook_url` of a project's batches."""
    with Client() as client, client.ledger.transaction() as connection:
        print_data(secret_of_batches(connection, project or DEFAULT_PROJECT))


@app.command(epilog=examples("labelmill webhooks test 06h0w4r0rf0dkckt"))
@report_errors
def test(webhook: IdArgument) -> None:
    """Send a message of the type `test` to a receiver, and print its id. See `attempts` for the answer."""
    with Client() as client, client.ledger.transaction() as connection:
        endpoint = get_endpoint(connection, webhook)
        print_data(report_test(connection, endpoint.id))


@app.command(epilog=examples("labelmill webhooks attempts", "labelmill webhooks attempts --json"))
@report_errors
def attempts(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 50,
    project: OnlyProjectOption = None,
    as_json: AsJsonList = False,
) -> None:
    """List messages, sent or not: attempts so far, the last answer, and the next attempt."""
    with Client() as client, client.ledger.reading() as connection:
        check_project(connection, project)
        found = list_deliveries(connection, limit=limit, project=project)
    print_rows(_DELIVERIES, found, as_json=as_json)


def _secret_in(path: Path | None) -> str | None:
    """Return the secret in this file. Raises UserError if it has none."""
    if path is None:
        return None
    try:
        return check_secret(path.read_text("utf-8").strip())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text: write the secret in it, as UTF-8.") from None


def _events_of(endpoint: Endpoint) -> str:
    if endpoint.url is None:
        return "the end of that batch"
    return ", ".join(endpoint.events) or "all"


def _answer_of(delivery: Delivery) -> str:
    if delivery.error is None or delivery.status is not None:
        return str(delivery.status or "-")
    return delivery.error
