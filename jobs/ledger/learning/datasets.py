"""The versions of datasets. `labelmill.datasets` stores their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict, NotFound
from jobs.models.dataset import MNIST, DatasetVersion
from jobs.schema import aliases, dataset_versions, db_now, gate_limits, schedules, training_runs


def latest_version(connection: Connection, dataset: str) -> DatasetVersion | None:
    """Return the dataset's latest version, or None if there is none."""
    query = sa.select(dataset_versions).where(dataset_versions.c.dataset == dataset)
    row = connection.execute(query.order_by(dataset_versions.c.version.desc()).limit(1)).one_or_none()
    return None if row is None else _to_version(row)


def get_version(connection: Connection, dataset: str, version: int | None = None) -> DatasetVersion:
    """Return this version of the dataset, or its latest. Raises NotFound."""
    found = latest_version(connection, dataset)
    if found is None:
        if dataset == MNIST:
            raise NotFound(
                f"Dataset {MNIST} has not been added yet: `labelmill train` adds it and trains a model, and "
                f"`labelmill datasets add {MNIST} FOLDER` adds your own images."
            )
        raise NotFound(f"There is no dataset {dataset!r}. `labelmill datasets` lists all.")
    if version is None or version == found.version:
        return found
    query = sa.select(dataset_versions).where(dataset_versions.c.dataset == dataset)
    row = connection.execute(query.where(dataset_versions.c.version == version)).one_or_none()
    if row is None:
        raise NotFound(f"Dataset {dataset} has no version {version}: its latest is {found.version}.")
    return _to_version(row)


def find_version(connection: Connection, *, manifest: str) -> DatasetVersion | None:
    """Return the version with this manifest, or None."""
    query = sa.select(dataset_versions).where(dataset_versions.c.manifest == manifest)
    row = connection.execute(query).one_or_none()
    return None if row is None else _to_version(row)


def list_datasets(connection: Connection) -> list[DatasetVersion]:
    """Return the latest version of each dataset, in the order of their names."""
    other = dataset_versions.alias()
    latest = sa.select(sa.func.max(other.c.version)).where(other.c.dataset == dataset_versions.c.dataset)
    query = sa.select(dataset_versions).where(dataset_versions.c.version == latest.scalar_subquery())
    return list(map(_to_version, connection.execute(query.order_by(dataset_versions.c.dataset))))


def list_versions(connection: Connection, dataset: str, *, limit: int) -> list[DatasetVersion]:
    """Return the latest versions of the dataset, newest first."""
    query = sa.select(dataset_versions).where(dataset_versions.c.dataset == dataset)
    query = query.order_by(dataset_versions.c.version.desc()).limit(limit)
    return list(map(_to_version, connection.execute(query)))


def manifests_of(connection: Connection, dataset: str) -> list[str]:
    """Return the keys of the manifests of all versions of the dataset."""
    query = sa.select(dataset_versions.c.manifest).where(dataset_versions.c.dataset == dataset)
    return list(connection.scalars(query))


def add_version(
    connection: Connection,
    dataset: str,
    *,
    after: DatasetVersion | None,
    fingerprint: str,
    classes: Sequence[str],
    summary: dict[str, Any],
    manifest: str,
    by_reference: bool,
) -> DatasetVersion:
    """Add the version that follows `after`, or the first one, and return it.

    Raises Conflict if another process has added a version, or removed the dataset, since `after` was read.
    """
    _lock(connection)
    latest = latest_version(connection, dataset)
    if (latest and latest.manifest) != (after and after.manifest):
        what = "removed" if latest is None else "added to" if after else "added"
        raise Conflict(f"Dataset {dataset} was {what} at the same time by another process: try again.")
    version = latest.version + 1 if latest else 1
    connection.execute(
        dataset_versions.insert().values(
            dataset=dataset,
            version=version,
            fingerprint=fingerprint,
            classes=list(classes),
            summary=summary,
            manifest=manifest,
            by_reference=by_reference,
            created_at=db_now(),
        )
    )
    return get_version(connection, dataset, version)


def remove_dataset(connection: Connection, dataset: str) -> list[str]:
    """Remove all versions of the dataset, its schedule and its limits. Return the keys of its manifests.

    The models that were trained on it stay. Raises NotFound if there is no such dataset; Conflict if it has a
    champion or a challenger, or a training run that has not finished.
    """
    _lock(connection)
    get_version(connection, dataset)
    held = sa.select(aliases.c.name, aliases.c.model_id).where(aliases.c.dataset == dataset)
    alias = connection.execute(held.order_by(aliases.c.name).limit(1)).one_or_none()
    if alias is not None:
        raise Conflict(
            f"Dataset {dataset} cannot be removed: model {alias.model_id} is its {alias.name}, and could no "
            "longer be replaced or evaluated. To work with other images, add them under another name."
        )
    active = sa.select(training_runs.c.id).where(
        training_runs.c.dataset == dataset, training_runs.c.active.is_not(None)
    )
    run_id = connection.scalar(active)
    if run_id is not None:
        raise Conflict(
            f"Dataset {dataset} cannot be removed while training run {run_id} is active: wait for its end, "
            f"or stop it with `labelmill runs cancel {run_id}`."
        )
    manifests = manifests_of(connection, dataset)
    for table in (schedules, gate_limits, dataset_versions):
        connection.execute(table.delete().where(table.c.dataset == dataset))
    return manifests


def _lock(connection: Connection) -> None:
    """Let nobody else add or remove versions until this transaction ends. Readers do not wait."""
    if connection.dialect.name == "postgresql":
        # The table, because a first version has no row to lock. On SQLite, the transaction is the lock.
        connection.execute(sa.text("LOCK TABLE dataset_versions IN SHARE ROW EXCLUSIVE MODE"))


def _to_version(row: Row[Any]) -> DatasetVersion:
    return DatasetVersion(**{**row._mapping, "classes": tuple(row.classes)})
