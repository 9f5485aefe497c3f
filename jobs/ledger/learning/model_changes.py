"""Correct a model's class names, or remove the model, while nothing depends on it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobs.errors import Conflict, UserError
from jobs.ledger.learning.models import find_verdict, get_model
from jobs.ledger.learning.schedules import list_schedules
from jobs.models.model import Model, name_classes
from jobs.schema import db_now, evaluations, metadata, model_runtimes, models, training_runs, verdicts

#: The columns of other tables that name a model. Evaluations and runtimes belong to their model, and go with
#: it.
_REFERENCES: Final = tuple(
    column
    for table in metadata.sorted_tables
    if table not in (evaluations, model_runtimes)
    for column in table.columns
    if column.references(models.c.id)
)


def rename_classes(connection: Connection, model_id: str, classes: tuple[str, ...]) -> Model:
    """Give the model's classes other names, in the order of its outputs, and return the model.

    Its evaluations are removed, because they use the old names. Its verdicts stay as a record.
    Raises NotFound; UserError for another number of classes; Conflict if a job, a person's correction, a
    promotion, an alias or a training run depends on the names.
    """
    _lock(connection, model_id)
    model = get_model(connection, model_id)
    if len(classes) != len(model.classes):
        raise UserError(
            f"Model {model_id} has {len(model.classes)} classes ({name_classes(model.classes)}), and "
            f"{len(classes)} are named: name all of them, in the order of its outputs."
        )
    used = _used_by(connection, model_id, ignoring=(verdicts.c.model_id, verdicts.c.champion_id))
    if used:
        raise Conflict(
            f"The classes of model {model_id} can no longer be changed, because it is used by {used}: save "
            "it again, and register the new file with the right names."
        )
    connection.execute(evaluations.delete().where(evaluations.c.model_id == model_id))
    renamed = models.update().where(models.c.id == model_id)
    connection.execute(renamed.values(classes=list(classes), accuracy=None))
    return get_model(connection, model_id)


def remove_row(connection: Connection, model_id: str) -> None:
    """Remove a model's row and its evaluations. The training run of a model that the gate refused stays.

    Raises NotFound, or Conflict, which says what else refers to the model.
    """
    _lock(connection, model_id)
    verdict = find_verdict(connection, model_id)
    is_refused = verdict is not None and not verdict.promote
    used = _used_by(
        connection, model_id, ignoring=(verdicts.c.model_id, training_runs.c.model_id) if is_refused else ()
    )
    if used:
        raise Conflict(
            f"Model {model_id} cannot be removed, because it is used by {used}: only a model that was never "
            "used, or that the gate refused, can be."
        )
    for schedule in list_schedules(connection):
        if schedule.request.get("start") == model_id:
            raise Conflict(
                f"Model {model_id} cannot be removed: the schedule of {schedule.dataset} starts from it. "
                f"`labelmill schedule {schedule.dataset} --architecture cnn` trains another network."
            )
    for table in (evaluations, verdicts):
        connection.execute(table.delete().where(table.c.model_id == model_id))
    # The run's row keeps the verdict in words.
    runs = training_runs.update().where(training_runs.c.model_id == model_id)
    connection.execute(runs.values(model_id=None))
    try:
        connection.execute(models.delete().where(models.c.id == model_id))
    except IntegrityError as error:
        raise Conflict(
            f"Model {model_id} cannot be removed: another process has just begun to use it."
        ) from error


def _lock(connection: Connection, model_id: str) -> None:
    """Lock the model's row: nothing that refers to it can be added until this transaction ends.

    Raises NotFound.
    """
    get_model(connection, model_id)
    connection.execute(sa.select(models.c.id).where(models.c.id == model_id).with_for_update())


def refused_models(connection: Connection, *, older_than_days: float = 0.0) -> list[str]:
    """Return the ids of the models that the gate refused last, and that were made so many days ago."""
    oldest = sa.select(db_now(-older_than_days * 86_400)).scalar_subquery()
    query = sa.select(models.c.id).where(models.c.created_at <= oldest).order_by(models.c.created_at)
    verdict_on = {each: find_verdict(connection, each) for each in connection.scalars(query)}
    return [each for each, verdict in verdict_on.items() if verdict is not None and not verdict.promote]


def _used_by(connection: Connection, model_id: str, *, ignoring: Collection[sa.Column[Any]] = ()) -> str:
    """Return how many rows of which tables refer to the model: `jobs (2), promotions (1)`; empty if none."""
    counts: dict[str, int] = {}
    for column in _REFERENCES:
        if column not in set(ignoring):
            query = sa.select(sa.func.count()).select_from(column.table).where(column == model_id)
            found = connection.execute(query).scalar_one()
            counts[column.table.name] = counts.get(column.table.name, 0) + found
    return ", ".join(f"{name.replace('_', ' ')} ({count})" for name, count in counts.items() if count)
