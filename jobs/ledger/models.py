"""Models and their aliases, as rows. `jobs.registry` keeps the files that belong to them."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import NotFound
from jobs.ledger.database import insert_into
from jobs.model import InputSpec, Model
from jobs.schema import aliases, db_now, models

#: The alias of the model that new jobs are pinned to.
CHAMPION: Final = "champion"

#: What is said where a champion is needed and there is none.
NO_MODEL: Final = "There is no model yet: run `labelmill train`."
NO_CHAMPION: Final = (
    "No model is the champion: name one, as in `labelmill submit SOURCES --model MODEL`, or make one the "
    "champion: `labelmill models promote MODEL`, with --force where it was not evaluated. "
    "`labelmill models list` shows them."
)


def add_model(
    connection: Connection,
    *,
    model_id: str,
    architecture: str,
    sha256: str,
    size_bytes: int,
    classes: tuple[str, ...],
    input_spec: InputSpec,
    accuracy: float | None,
    metrics: dict[str, Any],
) -> str:
    """A model's row. The same file registered twice is one model: gives back the id it has."""
    connection.execute(
        insert_into(connection, models)
        .values(
            id=model_id,
            architecture=architecture,
            sha256=sha256,
            size_bytes=size_bytes,
            classes=list(classes),
            input_spec=input_spec.to_json(),
            accuracy=accuracy,
            metrics=metrics,
            created_at=db_now(),
        )
        .on_conflict_do_nothing(index_elements=[models.c.sha256])
    )
    found: str = connection.execute(sa.select(models.c.id).where(models.c.sha256 == sha256)).scalar_one()
    return found


def point_alias(connection: Connection, name: str, model_id: str) -> None:
    """Moves the alias to the model. The champion's is moved by `jobs.ledger.promotions`, with its history."""
    connection.execute(
        insert_into(connection, aliases)
        .values(name=name, model_id=model_id, moved_at=db_now())
        .on_conflict_do_update(
            index_elements=[aliases.c.name], set_={"model_id": model_id, "moved_at": db_now()}
        )
    )


def get_model(connection: Connection, model_id: str) -> Model:
    """The model with this id. Raises NotFound."""
    row = connection.execute(sa.select(models).where(models.c.id == model_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no model {model_id!r}: `labelmill models list` shows them.")
    return _to_model(row, _aliases(connection))


def find_champion(connection: Connection) -> Model | None:
    """The model that new jobs are pinned to, if there is one yet."""
    row = connection.execute(
        sa.select(models).join(aliases, aliases.c.model_id == models.c.id).where(aliases.c.name == CHAMPION)
    ).one_or_none()
    return None if row is None else _to_model(row, _aliases(connection))


def model_or_champion(connection: Connection, model_id: str | None) -> Model:
    """The model that is named, or the champion where none is. Raises NotFound."""
    model = find_champion(connection) if model_id is None else get_model(connection, model_id)
    if model is None:
        raise NotFound(NO_CHAMPION if _any_model(connection) else NO_MODEL)
    return model


def _any_model(connection: Connection) -> bool:
    return connection.scalar(sa.select(models.c.id).limit(1)) is not None


def list_models(connection: Connection) -> list[Model]:
    """All models, newest first."""
    names = _aliases(connection)
    query = sa.select(models).order_by(models.c.created_at.desc(), models.c.id.desc())
    return [_to_model(row, names) for row in connection.execute(query)]


def _aliases(connection: Connection) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for row in connection.execute(sa.select(aliases.c.model_id, aliases.c.name).order_by(aliases.c.name)):
        names.setdefault(row.model_id, []).append(row.name)
    return names


def _to_model(row: Row[Any], names: dict[str, list[str]]) -> Model:
    return Model(
        id=row.id,
        architecture=row.architecture,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        classes=tuple(row.classes),
        input_spec=InputSpec.from_json(row.input_spec),
        accuracy=row.accuracy,
        metrics=row.metrics,
        created_at=row.created_at,
        aliases=tuple(names.get(row.id, ())),
    )
