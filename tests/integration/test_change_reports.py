"""The client reports each change in the transaction that makes it: the HTTP API writes its audit there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from jobs.errors import ErrorCode
from jobs.ledger import Ledger
from jobs.schema import aliases, chunks, corrections, jobs, predictions, training_runs
from jobs.storage.store import Store
from labelmill.client import Client
from tests.outcomes import Outcome


class Killed(Exception):
    """The process ends in the middle of a transaction."""


@dataclass(frozen=True)
class Things:
    """What can be changed."""

    open: str
    paused: str
    done: str  # its first image has a correction, its last an error
    model: str  # the champion before the present one


@pytest.fixture
def things(client: Client, store: Store, make_model, submitted, worker) -> Things:
    first = make_model(store=store)
    done = submitted(3)
    labels = [Outcome(f"{index}.png", "7", 0.75) for index in range(2)]
    worker.work(done.chunks[0], [*labels, Outcome("2.png", None, None, ErrorCode.TIMEOUT)])
    client.correct(done.id, 0, "1")
    client.promote(make_model(b"second", champion=False, store=store).id, force=True)
    paused = client.submit(b"x")
    client.pause(paused)
    return Things(client.submit(b"x"), paused, done.id, first.id)


@pytest.mark.usefixtures("mnist")
@pytest.mark.parametrize(
    ("action", "change"),
    [
        ("submit job", lambda client, _: client.submit(b"another")),
        ("cancel job", lambda client, things: client.cancel(things.open)),
        ("pause job", lambda client, things: client.pause(things.open)),
        ("resume job", lambda client, things: client.resume(things.paused)),
        ("retry job", lambda client, things: client.retry(things.done)),
        ("correct image", lambda client, things: client.correct(things.done, 1, "3")),
        ("undo correction", lambda client, things: client.undo_correction(things.done, 0)),
        ("promote model", lambda client, things: client.promote(things.model, force=True)),
        ("roll back", lambda client, _: client.rollback()),
        ("request run", lambda client, _: client.retrain()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_and_its_report_are_one(
    client: Client, ledger: Ledger, things: Things, action: str, change: Callable[[Client, Things], object]
) -> None:
    before = state_of(ledger)

    def killed(*_: object) -> None:
        raise Killed

    client.on_change = killed
    with pytest.raises(Killed):
        change(client, things)
    assert state_of(ledger) == before

    reported: list[str] = []
    client.on_change = lambda _connection, done, _changed: reported.append(done)
    change(client, things)
    assert reported == [action]
    assert state_of(ledger) != before


def state_of(ledger: Ledger) -> list[object]:
    """Return what the ledger has about jobs, corrections, models and training runs."""
    with ledger.reading() as connection:
        return [
            connection.execute(sa.select(table).order_by(*table.primary_key)).all()
            for table in (jobs, chunks, predictions, corrections, aliases, training_runs)
        ]
