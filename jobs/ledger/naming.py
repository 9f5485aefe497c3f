"""Id lookup: find a job, model or training run by its id, the beginning of its id, or a model's alias."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, NotFound
from jobs.ids import first_id, is_id, last_id
from jobs.ledger.models import CHAMPION, get_model, model_or_champion
from jobs.model import Model
from jobs.schema import aliases, jobs, models, training_runs

#: The fewest characters of an id. Ids begin with their time: six characters cover four minutes.
MIN_BEGINNING: Final = 6

#: How many ids a message names if several fit.
_TOLD: Final = 4


def job_named(connection: Connection, typed: str) -> str:
    """Return the id of the job that is meant, or `typed` itself if no job fits.

    Raises Conflict if several jobs fit, NotFound if it is too short.
    """
    return _full_id(connection, "job", jobs.c.id, typed)


def run_named(connection: Connection, typed: str) -> str:
    """Return the id of the training run that is meant, or `typed` itself if no run fits.

    Raises Conflict if several runs fit, NotFound if it is too short.
    """
    return _full_id(connection, "training run", training_runs.c.id, typed)


def model_named(connection: Connection, typed: str | None) -> Model:
    """Return the model that is meant by an id or an alias; without one, the champion.

    Raises NotFound, and Conflict if several models fit.
    """
    if typed is None or typed.strip() == CHAMPION:
        return model_or_champion(connection, None)
    found = connection.scalar(sa.select(aliases.c.model_id).where(aliases.c.name == typed.strip()))
    return get_model(connection, found or _full_id(connection, "model", models.c.id, typed))


def _full_id(connection: Connection, what: str, ids: sa.Column[Any], typed: str) -> str:
    text = typed.strip().lower()
    if is_id(text):
        return text
    if not text or not is_id(first_id(text)):
        return typed
    if len(text) < MIN_BEGINNING:
        raise NotFound(f"There is no {what} {typed!r}: type at least {MIN_BEGINNING} characters of its id.")
    # BETWEEN, not LIKE: it uses the index.
    between = sa.select(ids).where(ids.between(first_id(text), last_id(text))).order_by(ids)
    found = list(connection.scalars(between.limit(_TOLD + 1)))
    if len(found) > 1:
        told = ", ".join(found[:_TOLD]) + (", ..." if len(found) > _TOLD else "")
        raise Conflict(f"{typed!r} is the beginning of several {what}s: type more of {told}.")
    return found[0] if found else typed
