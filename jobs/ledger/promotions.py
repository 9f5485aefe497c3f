"""Which model is the champion, since when, and why: the verdicts, and every move of the alias.

Each transaction that moves the alias calls `lock_champion` first, so moves never overlap. Each move names the
champion before it, so the history is a chain without gaps. `jobs.promotion` decides.
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
    forced: bool  # the gate was overruled
    verdict_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """The gate's decision about a model, as stored."""

    id: str
    run_id: str | None  # the training run that asked
    model_id: str
    champion_id: str | None  # the champion it was compared with
    promote: bool
    forced: bool
    checks: list[dict[str, Any]]  # name, passed, text
    created_at: datetime


def lock_champion(connection: Connection) -> str | None:
    """Return the champion's id, or None, and let nobody else move it before this transaction ends.

    Readers do not wait.
    """
    if connection.dialect.name == "postgresql":
        # The table, because before the first promotion there is no row to lock. On SQLite, the transaction
        # itself is the lock.
        connection.execute(sa.text("LOCK TABLE promotions IN SHARE ROW EXCLUSIVE MODE"))
    found: str | None = connection.scalar(_CHAMPION_ID)
    return found


def move_champion(
    connection: Connection, model_id: str, *, previous_id: str | None, how: How, verdict_id: str | None = None
) -> None:
    """Make the model the champion and record the move. A promoted challenger stops being a challenger.

    `previous_id` is what `lock_champion` returned in this transaction.
    """
    latest = connection.scalar(sa.select(sa.func.max(promotions.c.id)))
    point_alias(connection, CHAMPION, model_id)
    connection.execute(aliases.delete().where(aliases.c.name == SHADOW, aliases.c.model_id == model_id))
    connection.execute(
        promotions.insert().values(
            # Ids give the order, even if the clocks of two machines differ.
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
    """Store a verdict and return its id."""
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
    """Return the latest verdict on the model, or None."""
    query = sa.select(verdicts).where(verdicts.c.model_id == model_id)
    row = connection.execute(query.order_by(verdicts.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else StoredVerdict(**row._mapping)


def champion_history(connection: Connection, *, limit: int | None = None) -> list[Promotion]:
    """Return the moves of the champion alias, latest first."""
    return [Promotion(**row._mapping) for row in connection.execute(_MOVES.limit(limit))]


def champion_before(connection: Connection) -> str:
    """Return the model that `roll_back` would make the champion. Raises Conflict if there is none."""
    return _before(connection, connection.scalar(_CHAMPION_ID))


def roll_back(connection: Connection, model_id: str) -> Promotion:
    """Make the model that `champion_before` named the champion again, and return the move.

    Raises Conflict if somebody else has moved the champion meanwhile.
    """
    champion_id = lock_champion(connection)
    if _before(connection, champion_id) != model_id:
        raise Conflict(
            "Somebody else moved the champion at the same time: `labelmill models history` shows it."
        )
    move_champion(connection, model_id, previous_id=champion_id, how=ROLLBACK)
    return champion_history(connection, limit=1)[0]


def _before(connection: Connection, champion_id: str | None) -> str:
    """Return the champion before this one, leaving out what was rolled back.

    So rolling back twice goes two steps back, not one back and one forth. Raises Conflict if there is none.
    """
    steps: list[str] = []
    for move in reversed(champion_history(connection)):
        if move.how == ROLLBACK:
            del steps[-1:]
            continue
        if move.previous_id is not None and steps[-1:] != [move.previous_id]:
            steps.append(move.previous_id)  # a champion that is older than the history
        steps.append(move.model_id)
    if champion_id is None:
        raise Conflict("There is no champion, and so none before it.")
    if len(steps) < 2 or steps[-1] != champion_id:
        raise Conflict(f"There was no champion before {champion_id}: `labelmill models history` shows them.")
    return steps[-2]
