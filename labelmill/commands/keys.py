"""`labelmill keys`: create, list, rotate and revoke keys of the HTTP API, and show the audit."""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Final

import typer

from jobs.ledger.api.audit import list_entries
from jobs.ledger.api.keys import OVERLAP_HOURS, ApiKey, Role, create_key, list_keys, revoke_key, rotate_key
from jobs.ledger.api.projects import check_project
from jobs.options import DEFAULT_PROJECT
from labelmill.client import Client
from labelmill.commands.groups import listing_group
from labelmill.commands.options import AsJsonList, OnlyProjectOption, ProjectOption
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, print_data, report_errors, say

app = listing_group(
    "List the keys of the HTTP API, create, rotate or revoke one, or show the audit.",
    "labelmill keys",
    "labelmill keys create laptop",
)

_COLUMNS: Final = (
    Column("id", lambda key: key.id),
    Column("name", lambda key: key.name, min_width=8),
    Column("project", attrgetter("project"), leave_out=3),
    Column("role", lambda key: key.role),
    Column("created (UTC)", lambda key: short_time(key.created_at), leave_out=2),
    Column("expires (UTC)", lambda key: short_time(key.expires_at), leave_out=1),
    Column("used (UTC)", lambda key: short_time(key.last_used_at)),
    Column("revoked (UTC)", lambda key: short_time(key.revoked_at)),
)

_AUDIT: Final = (
    Column("at (UTC)", lambda entry: short_time(entry.created_at)),
    Column("who", lambda entry: entry.key_name or ("-" if entry.address else "console"), min_width=8),
    Column("address", lambda entry: entry.address or "-", leave_out=1),
    Column("action", attrgetter("action")),
    Column("object", attrgetter("object"), min_width=16),
)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, from the list.")]


@app.command("list", epilog=examples("labelmill keys list --json"))
@report_errors
def list_all(project: OnlyProjectOption = None, as_json: AsJsonList = False) -> None:
    """List the keys, without their secrets."""
    with Client() as client, client.ledger.reading() as connection:
        check_project(connection, project)
        found = list_keys(connection, project=project)
    print_rows(_COLUMNS, found, as_json=as_json)


@app.command(
    epilog=examples(
        "labelmill keys create laptop",
        "labelmill keys create ci --role admin --expires 90",
        "labelmill keys create aviary --project birds",
    )
)
@report_errors
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use it.")],
    role: Annotated[
        Role, typer.Option(help="What it may do: each role includes those before it.")
    ] = Role.SUBMIT,
    project: ProjectOption = None,
    expires: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Days until it expires. Default: never.")
    ] = None,
) -> None:
    """Create a key, and print it, the only word on stdout. Keep it: the ledger stores only its hash."""
    with Client() as client, client.ledger.transaction() as connection:
        key, secret = create_key(connection, name, role, project=project or DEFAULT_PROJECT, days=expires)
    say(
        f"key {key.id} for {key.name}, role {key.role}, project {key.project}; keep it, it is not shown again"
    )
    print_data(secret)


@app.command(epilog=examples("labelmill keys rotate 06h0w4r0rf0dkckt --overlap 1"))
@report_errors
def rotate(
    key: KeyArgument,
    overlap: Annotated[
        float,
        typer.Option(
            min=0, max=720, metavar="HOURS", help="How long the old secret works, too; 0: no longer."
        ),
    ] = OVERLAP_HOURS,
) -> None:
    """Give a key a new secret, and print it, the only word on stdout. Its role and expiry stay."""
    with Client() as client, client.ledger.transaction() as connection:
        rotated, secret = rotate_key(connection, key, overlap_hours=overlap)
    until = f"works until {short_time(rotated.old_until)} UTC" if overlap else "is refused"
    say(f"key {rotated.id} of {rotated.name} has a new secret; the old one {until}")
    print_data(secret)


@app.command(epilog=examples("labelmill keys audit", "labelmill keys audit --limit 1000 --json"))
@report_errors
def audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 50,
    as_json: AsJsonList = False,
) -> None:
    """Show what was changed over HTTP, which keys were made or revoked, and which requests were refused.

    Entries are kept for 90 days.
    """
    with Client() as client, client.ledger.reading() as connection:
        found = list_entries(connection, limit=limit)
    print_rows(_AUDIT, found, as_json=as_json)


@app.command(epilog=examples("labelmill keys revoke 06h0w4r0rf0dkckt"))
@report_errors
def revoke(key: KeyArgument) -> None:
    """Revoke a key: after at most a second, requests with it are refused."""
    with Client() as client, client.ledger.transaction() as connection:
        revoked: ApiKey = revoke_key(connection, key)
    say(f"key {revoked.id} of {revoked.name} is revoked")
    print_data(revoked.id)
