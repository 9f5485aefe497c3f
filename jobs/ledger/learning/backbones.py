"""The backbones: pretrained networks on which training builds classifiers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict, NotFound
from jobs.ledger.database import insert_into
from jobs.models.backbone import Backbone
from jobs.models.model import InputSpec
from jobs.schema import backbones, db_now


def add_backbone(
    connection: Connection,
    name: str,
    *,
    sha256: str,
    size_bytes: int,
    input_spec: InputSpec,
    features: int,
    source: str,
    licence: str | None,
) -> Backbone:
    """Add a backbone and return it. Raises Conflict if another one has this name."""
    insert = insert_into(connection, backbones).values(
        name=name,
        sha256=sha256,
        size_bytes=size_bytes,
        input_spec=asdict(input_spec),
        features=features,
        source=source,
        licence=licence,
        created_at=db_now(),
    )
    connection.execute(insert.on_conflict_do_nothing())
    found = get_backbone(connection, name)
    if found.sha256 != sha256:
        raise Conflict(
            f"Another backbone is called {name}: choose another name, or remove it first with "
            f"`labelmill backbones remove {name}`."
        )
    return found


def get_backbone(connection: Connection, name: str) -> Backbone:
    """Return the backbone with this name. Raises NotFound."""
    row = connection.execute(sa.select(backbones).where(backbones.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(
            f"There is no backbone {name!r}. `labelmill backbones` lists all, and `labelmill backbones add` "
            "adds one."
        )
    return _to_backbone(row)


def list_backbones(connection: Connection) -> list[Backbone]:
    """Return all backbones, the latest first."""
    query = sa.select(backbones).order_by(backbones.c.created_at.desc(), backbones.c.name)
    return list(map(_to_backbone, connection.execute(query)))


def delete_backbone(connection: Connection, name: str) -> bool:
    """Delete a backbone's row. Return whether another one has the same file."""
    sha256 = get_backbone(connection, name).sha256
    connection.execute(backbones.delete().where(backbones.c.name == name))
    return bool(connection.scalar(sa.select(sa.exists().where(backbones.c.sha256 == sha256))))


def _to_backbone(row: Row[Any]) -> Backbone:
    return Backbone(**{**row._mapping, "input_spec": InputSpec(**row.input_spec)})
