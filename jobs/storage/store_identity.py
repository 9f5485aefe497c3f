"""The store's identity: make sure that nobody writes a job's images where no worker looks.

The ledger holds a random id, and its store holds a file of that name. A process that does not find the file
uses the wrong store: another disk, another bucket, or a folder of the same name on another machine.
"""

from __future__ import annotations

import socket
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Row

from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.database import insert_into
from jobs.ledger.learning.models import champions
from jobs.network.objects import shown_url
from jobs.schema import db_now, store_identity
from jobs.storage.registry import model_key
from jobs.storage.store import Store

_CONTENT: Final = b"A Labelmill ledger knows its store by this file. Copy it when you move the store.\n"


def check_store(ledger: Ledger, store: Store) -> None:
    """Check that the ledger's files are in this store. The first store that is used becomes the ledger's.

    Raises Conflict if they are in another store, Unavailable if ledger or store cannot be reached.
    """
    with ledger.reading() as connection:
        recorded = connection.execute(sa.select(store_identity)).one_or_none()
    if recorded is None:
        recorded = _record_first(ledger, store)
    if recorded is None or recorded.id == store.identity:
        return
    if not store.exists(_key(recorded.id)):
        raise Conflict(
            f"This process uses the store {describe_store(store)}, but the ledger's files are in "
            f"{recorded.location}. Set LABELMILL_STORE_URL to the store that the workers use, or mount its "
            "disk. If the files were moved here, run `labelmill db adopt-store`."
        )
    store.identity = recorded.id


def adopt_store(ledger: Ledger, store: Store) -> None:
    """Make this store the ledger's, whatever was recorded before. Raises Unavailable."""
    identity = new_id()
    store.put(_key(identity), _CONTENT)  # first: with a row but no file, all processes would be refused
    values = {"id": identity, "location": describe_store(store), "recorded_at": db_now()}
    with ledger.transaction() as connection:
        connection.execute(
            insert_into(connection, store_identity)
            .values(one=1, **values)
            .on_conflict_do_update(index_elements=[store_identity.c.one], set_=values)
        )


def describe_store(store: Store) -> str:
    """Return the store's location for people, without secrets.

    For a folder it includes this machine's name.
    """
    if store.folder is not None:
        return f"{store.folder} on {socket.gethostname()}"
    return shown_url(store.url)


def _record_first(ledger: Ledger, store: Store) -> Row[Any] | None:
    """Record the store of a ledger that has none yet. Return what is recorded then.

    Return None, and record nothing, if a champion's file is not in the store: it was registered with another
    store.
    """
    with ledger.reading() as connection:
        in_use = champions(connection)
    if not all(store.exists(model_key(champion.sha256)) for champion in in_use):
        return None
    identity = new_id()
    # The file first. If several processes do this at once, the ledger keeps one id, and those that use the
    # same store find that id's file there.
    store.put(_key(identity), _CONTENT)
    with ledger.transaction() as connection:
        connection.execute(
            insert_into(connection, store_identity)
            .values(one=1, id=identity, location=describe_store(store), recorded_at=db_now())
            .on_conflict_do_nothing()
        )
        recorded = connection.execute(sa.select(store_identity)).one()
    if recorded.id != identity:
        store.remove(_key(identity))
    return recorded


def _key(identity: str) -> str:
    return f"identity/{identity}"
