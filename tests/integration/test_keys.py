"""Keys of the HTTP API: their replacement, the one that `up` makes, and the audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
from typer.testing import Result

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.audit import AUDIT_DAYS, Entry, list_entries
from jobs.ledger.api.keys import Role, create_key, list_keys
from jobs.schema import api_keys, audit, db_now
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.client.purging import Purge
from labelmill.commands import keys as command
from labelmill.server import usage
from labelmill.server.serving import API_KEY_FILE, make_first_key
from tests.console import until
from tests.serving import served_locally


@dataclass
class Server:
    """A served API without a key."""

    client: httpx.Client

    def get(self, path: str, key: str, address: str | None = None) -> httpx.Response:
        """Send a request with this key, from this address as a trusted proxy reports it."""
        headers = {"Authorization": f"Bearer {key}"} | ({"X-Forwarded-For": address} if address else {})
        return self.client.get(path, headers=headers)


@pytest.fixture
def server(settings: Settings, ledger: Ledger) -> Iterator[Server]:  # noqa: ARG001
    with served_locally(settings) as (_, url), httpx.Client(base_url=url, timeout=60) as client:
        yield Server(client)


@pytest.fixture
def run(run_command: Callable[..., Result]) -> Callable[..., Result]:
    return lambda *arguments: run_command(command.app, *arguments)


def key_of(ledger: Ledger, role: Role = Role.SUBMIT) -> tuple[str, str]:
    """Return the id and the secret of a new key."""
    with ledger.transaction() as connection:
        key, secret = create_key(connection, "test", role)
    return key.id, secret


def entries(ledger: Ledger) -> list[Entry]:
    """Return the audit, oldest first."""
    with ledger.reading() as connection:
        return list_entries(connection, limit=1_000)[::-1]


def test_a_key_that_is_replaced_works_until_its_overlap_is_over(
    server: Server, run: Callable[..., Result], ledger: Ledger
) -> None:
    # Given a key that is replaced
    key_id, old = key_of(ledger)
    new = run("rotate", key_id, "--overlap", "1").stdout.strip()
    # Then the new one works, and the old one until its time is over
    assert [server.get("/v1/batches", key).status_code for key in (old, new)] == [200, 200]
    with ledger.transaction() as connection:
        connection.execute(api_keys.update().values(old_until=db_now(-1)))
    until(lambda: server.get("/v1/batches", old).status_code == 401, "the old key is refused")
    assert server.get("/v1/batches", new).status_code == 200
    # And without an overlap, it works no longer
    newest = run("rotate", key_id, "--overlap", "0").stdout.strip()
    until(lambda: server.get("/v1/batches", new).status_code == 401, "the new key is refused")
    assert server.get("/v1/batches", newest).status_code == 200
    # And a key that is revoked cannot be replaced
    assert run("revoke", key_id).exit_code == 0
    assert run("rotate", key_id).exit_code == 2
    assert run("rotate", new_id()).exit_code == 2


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_key_that_up_makes_works_on_its_own_machine_only(server: Server, settings: Settings) -> None:
    settings.home.mkdir(exist_ok=True)
    with Client(settings) as client:
        make_first_key(client)
    key = (settings.home / API_KEY_FILE).read_text().strip()
    assert server.get("/v1/batches", key).status_code == 200
    assert server.get("/v1/batches", key, "::ffff:127.0.0.1").status_code == 200
    refused = server.get("/v1/batches", key, "203.0.113.7")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert "only on the server's own machine" in refused.json()["detail"]


def test_uses_and_refusals_are_noted_once_a_minute(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a key that is used, one whose role does not suffice, and strangers
    used, secret = key_of(ledger)
    monkeypatch.setattr(usage, "_MAX_REFUSED", 10)
    monkeypatch.setattr(usage, "_REPEAT_SECONDS", 3_600.0)  # however slow this machine is
    for _ in range(3):
        assert server.get("/v1/batches", secret).status_code == 200
        assert server.get("/v1/webhooks", secret).status_code == 403
        assert server.get("/v1/files/%00", "wrong", "203.0.113.7").status_code == 401
    until(lambda: len(entries(ledger)) >= 3, "refusals are noted")
    # Then each is noted once, with the address
    with ledger.reading() as connection:
        [key] = list_keys(connection)
    assert key.last_used_at is not None
    found = sorted((each.action, each.key_name, each.address, each.object) for each in entries(ledger))
    assert found == [
        ("create key", None, None, used),
        ("refused 401", None, "203.0.113.7", "GET /v1/files/%00"),
        ("refused 403", "test", "127.0.0.1", "GET /v1/webhooks"),
    ]
    # And however many strangers there are, they do not fill the ledger
    for number in range(30):
        assert server.get("/v1/batches", "wrong", f"203.0.113.{number}").status_code == 401
    until(lambda: len(entries(ledger)) >= 11, "strangers are noted")
    assert server.get("/v1/batches", "wrong", "203.0.114.1").status_code == 401
    assert len(entries(ledger)) == 11


@pytest.mark.usefixtures("store")
def test_a_change_over_http_is_recorded_with_its_address(server: Server, ledger: Ledger) -> None:
    key_id, secret = key_of(ledger)
    headers = {"Authorization": f"Bearer {secret}", "X-Forwarded-For": "203.0.113.7"}
    form = {"data": {"purpose": "batch"}, "files": {"file": b"an image"}}
    file_id = server.client.post("/v1/files", headers=headers, **form).json()["id"]
    found = entries(ledger)[-1]
    assert (found.action, found.key_id, found.address) == ("upload file", key_id, "203.0.113.7")
    assert file_id == f"file-{found.object}"


def test_what_the_command_does_to_keys_is_recorded_and_kept_for_a_time(
    run: Callable[..., Result], ledger: Ledger, store: Store
) -> None:
    run("create", "laptop")
    [key] = json.loads(run("list", "--json").stdout)
    run("rotate", key["id"]), run("revoke", key["id"]), run("revoke", key["id"])
    shown = json.loads(run("audit", "--json").stdout)
    actions = ["revoke key", "rotate key", "create key"]
    assert [(each["action"], each["object"]) for each in shown] == [(each, key["id"]) for each in actions]
    assert {(each["key_id"], each["address"]) for each in shown} == {(None, None)}
    assert run("audit").stdout.count("console") == 3

    # And it is purged when it is old
    with ledger.transaction() as connection:
        old = audit.c.id == shown[-1]["id"]
        connection.execute(audit.update().where(old).values(created_at=db_now(-(AUDIT_DAYS + 1) * 86_400)))
    for dry_run in (True, False):
        purge = Purge(ledger, store, dry_run=dry_run, on_progress=lambda _purged: None)
        purge.audit()
        assert (purge.purged.audit, len(entries(ledger))) == (1, 3 if dry_run else 2)
