"""The limits of each dataset's promotion gate: those that were set for it, otherwise the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import insert_into
from jobs.models.evaluation import GateLimits
from jobs.schema import db_now, gate_limits


def own_limits(connection: Connection, dataset: str) -> dict[str, float | None]:
    """Return the limits that were set for this dataset; None if one was switched off."""
    query = sa.select(gate_limits.c.limits).where(gate_limits.c.dataset == dataset)
    return dict(connection.scalar(query) or {})


def limits_of(connection: Connection, dataset: str) -> GateLimits:
    """Return what a model must reach to become the dataset's champion."""
    own: dict[str, Any] = own_limits(connection, dataset)
    return GateLimits(**own)


def set_limits(connection: Connection, dataset: str, limits: Mapping[str, float | None]) -> None:
    """Set these limits for the dataset in place of all that were set before."""
    values = {"limits": dict(limits), "changed_at": db_now()}
    connection.execute(
        insert_into(connection, gate_limits)
        .values(dataset=dataset, **values)
        .on_conflict_do_update(index_elements=[gate_limits.c.dataset], set_=values)
    )
