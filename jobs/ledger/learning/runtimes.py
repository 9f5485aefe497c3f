"""The runtimes of models: what a compilation found. `jobs.storage.registry` has the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.learning.models import get_model
from jobs.models.runtime import ModelRuntime, Runtime, RuntimeState
from jobs.schema import db_now, model_runtimes

_COLUMNS: Final = tuple(model_runtimes.c[field.name] for field in fields(ModelRuntime))


def save_runtimes(connection: Connection, model_id: str, runtimes: Sequence[ModelRuntime]) -> None:
    """Replace what is recorded about a model's runtimes. Raises NotFound if the model was removed."""
    get_model(connection, model_id)
    connection.execute(model_runtimes.delete().where(model_runtimes.c.model_id == model_id))
    rows = [asdict(each) | {"model_id": model_id, "created_at": db_now()} for each in runtimes]
    for row in rows:
        connection.execute(model_runtimes.insert().values(row))


def list_runtimes(connection: Connection, model_id: str) -> list[ModelRuntime]:
    """Return what is recorded about a model's runtimes: the quickest that passed first, failures last."""
    found = connection.execute(sa.select(*_COLUMNS).where(model_runtimes.c.model_id == model_id))
    runtimes = [
        ModelRuntime(**row._asdict() | {"runtime": Runtime(row.runtime), "state": RuntimeState(row.state)})
        for row in found
    ]
    return sorted(runtimes, key=_order)


def has_artefact(connection: Connection, sha256: str) -> bool:
    """Return whether a runtime of any model runs the file with this SHA-256."""
    query = sa.select(model_runtimes.c.model_id).where(model_runtimes.c.sha256 == sha256).limit(1)
    return connection.scalar(query) is not None


def _order(runtime: ModelRuntime) -> tuple[bool, float, str]:
    passed = runtime.state is RuntimeState.PASSED
    return not passed, runtime.image_microseconds or 0.0, runtime.runtime
