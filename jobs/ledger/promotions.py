"""Who is the champion, since when, and why: verdicts, and every move of the alias.

One moves it at a time: `lock_champion` comes first in each transaction that does. So each move names the
champion before it, and the history is a chain without a gap. `jobs.promotion` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.ledger.models import CHAMPION, point_alias
from jobs.ledger.shadows import SHADOW
from jobs.schema import aliases, db_now, promotions, verdicts

How = Literal["retrain", "promote", "rollback"]

ROLLBACK: Final = "rollback"

_MOVES: Final = (
    sa.select(promotions, sa.func.coalesce(verdicts.c.forced, sa.false()).label("forced"))
    .outerjoin(verdicts, verdicts.c.id == promotions.c.verdict_id)
    .order_by(promotions.c.id.desc())
)

_CHAMPION_ID: Final = sa.select(aliases.c.model_id).where(aliases.c.name == CHAMPION)


@dataclass(frozen=True, slots=True)
class Promotion:
    """One move of the champion alias."""

    id: str
    model_id: str
    previous_id: str | None  # the champion before
    how: str  # retrain, promote or rollback
    forced: bool  # whatever the gate said
    verdict_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """What the gate said of a model."""

    id: str
    run_id: str | None  # the training run that asked
    model_id: str
    champion_id: str | None  # whom it was compared with
    promote: bool
    forced: bool
    checks: list[dict[str, Any]]  # name, passed, text
    created_at: datetime


def lock_champion(connection: Connection) -> str | None:
    """The champion's id, if there is one, and nobody else moves it before this transaction ends. Who only
    reads is not held up.
    """
    if connection.dialect.name == "postgresql":
        # The table, not the alias's row: before the first promotion there is no row to lock. On SQLite the
        # transaction itself is the lock.
        connection.execute(sa.text("LOCK TABLE promotions IN SHARE ROW EXCLUSIVE MODE"))
    found: str | None = connection.scalar(_CHAMPION_ID)
    return found


def move_champion(
    connection: Connection, model_id: str, *, previous_id: str | None, how: How, verdict_id: str | None = None
) -> None:
    """Makes the model the champion, and writes that down. `previous_id` is what `lock_champion` gave back in
    this transaction. A challenger that becomes the champion is none any more.
    """
    latest = connection.scalar(sa.select(sa.func.max(promotions.c.id)))
    point_alias(connection, CHAMPION, model_id)
    connection.execute(aliases.delete().where(aliases.c.name == SHADOW, aliases.c.model_id == model_id))
    connection.execute(
        promotions.insert().values(
            # Their ids are their order, also where the clocks of two machines differ.
            id=new_id(after=latest),
            model_id=model_id,
            previous_id=previous_id,
            how=how,
            verdict_id=verdict_id,
            created_at=db_now(),
        )
    )


def add_verdict(
    connection: Connection,
    *,
    run_id: str | None,
    model_id: str,
    champion_id: str | None,
    promote: bool,
    forced: bool,
    checks: list[dict[str, Any]],
) -> str:
    """Writes a verdict down; gives back its id."""
    latest = connection.scalar(sa.select(sa.func.max(verdicts.c.id)).where(verdicts.c.model_id == model_id))
    verdict_id = new_id(after=latest)
    connection.execute(
        verdicts.insert().values(
            id=verdict_id,
            run_id=run_id,
            model_id=model_id,
            champion_id=champion_id,
            promote=promote,
            forced=forced,
            checks=checks,
            created_at=db_now(),
        )
    )
    return verdict_id


def find_verdict(connection: Connection, model_id: str) -> StoredVerdict | None:
    """The latest verdict on the model, if there is one."""
    query = sa.select(verdicts).where(verdicts.c.model_id == model_id)
    row = connection.execute(query.order_by(verdicts.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else StoredVerdict(**row._mapping)


def champion_history(connection: Connection, *, limit: int | None = None) -> list[Promotion]:
    """The moves of the champion alias, the latest first."""
    return [Promotion(**row._mapping) for row in connection.execute(_MOVES.limit(limit))]


def champion_before(connection: Connection) -> str:
    """The model that `roll_back` would make the champion. Raises Conflict where there was none before."""
    return _before(connection, connection.scalar(_CHAMPION_ID))


def roll_back(connection: Connection, model_id: str) -> Promotion:
    """Makes `model_id` the champion again, which `champion_before` has named. Raises Conflict where it is no
    longer the one before: somebody else was faster.
    """
    champion_id = lock_champion(connection)
    if _before(connection, champion_id) != model_id:
        raise Conflict(
            "The champion was moved by somebody else at this moment: `labelmill models history` shows it."
        )
    move_champion(connection, model_id, previous_id=champion_id, how=ROLLBACK)
    return champion_history(connection, limit=1)[0]


def _before(connection: Connection, champion_id: str | None) -> str:
    """The champion before this one, as one undoes: what was rolled back is no step to come back to, so that
    rolling back twice goes two steps back, not one back and one forth.
    """
    steps: list[str] = []
    for move in reversed(champion_history(connection)):
        if move.how == ROLLBACK:
            del steps[-1:]
            continue
        if move.previous_id is not None and steps[-1:] != [move.previous_id]:
            steps.append(move.previous_id)  # a champion from before there was a history
        steps.append(move.model_id)
    if champion_id is None:
        raise Conflict("There is no champion, and so none before it.")
    if len(steps) < 2 or steps[-1] != champion_id:
        raise Conflict(f"There was no champion before {champion_id}: `labelmill models history` shows them.")
    return steps[-2]
