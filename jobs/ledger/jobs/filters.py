"""Conditions on the predictions of a job, as the command, the HTTP API and the pages take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import UserError
from jobs.ledger.jobs.globs import matches_glob
from jobs.limits import MAX_GLOB_LENGTH
from jobs.schema import corrections, known_labels, predictions


class FilterKeywords(TypedDict, total=False):
    """The conditions as keyword arguments."""

    label: str | None
    below: float | None
    at_least: float | None
    errors: bool
    error: str | None
    name: str | None
    truth: str | None
    mistakes: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on a job's predictions, of which all must hold."""

    label: str | None = None
    below: float | None = None  # confidence below this
    at_least: float | None = None  # confidence of this or more
    errors: bool = False  # only images that got no label
    error: str | None = None  # only images with this error code
    name: str | None = None  # a glob: * any text, ? one character, [...] one of
    truth: str | None = None  # only images whose true class is this
    mistakes: bool = False  # only images whose true class is one of `classes`, and not their label
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UserError if the glob is too long."""
        if self.name is not None and len(self.name) > MAX_GLOB_LENGTH:
            raise UserError(
                f"A glob for names has at most {MAX_GLOB_LENGTH} characters, got {len(self.name):,}: write "
                "`*` for a part of it."
            )

    def apply(self, connection: Connection, query: sa.Select[Any]) -> sa.Select[Any]:
        """Return the query for predictions with these conditions."""
        table = predictions.c
        if self.label is not None:
            query = query.where(table.label == self.label)
        # As float32, like the column: the float64 nearest to 0.7 is a different number.
        if self.below is not None:
            query = query.where(table.confidence < sa.cast(self.below, sa.REAL))
        if self.at_least is not None:
            query = query.where(table.confidence >= sa.cast(self.at_least, sa.REAL))
        if self.errors:
            query = query.where(table.error.is_not(None))
        if self.error is not None:
            query = query.where(table.error == self.error)
        if self.name is not None:
            query = query.where(matches_glob(connection, table.name, self.name))
        if self.truth is not None:
            query = query.where(true_class() == self.truth)
        if self.mistakes:
            query = query.where(true_class().in_(self.classes), true_class() != table.label)
        return query


def true_class() -> sa.ColumnElement[str]:
    """Return the true class of a prediction's image: its correction, otherwise its known class."""
    return sa.func.coalesce(corrected_class(), known_class())


def known_class() -> sa.ColumnElement[str]:
    """Return what `jobs.models.dataset.known_label` returns for a prediction's image."""
    table, query = predictions.c, sa.select(known_labels.c.label)
    of_manifest = query.where(
        known_labels.c.job_id == table.job_id, known_labels.c.index == table.index
    ).scalar_subquery()
    return sa.func.coalesce(of_manifest, folder())


def corrected_class() -> sa.ScalarSelect[str]:
    """Return the label of the correction of a prediction's image; NULL if it has none."""
    table, query = predictions.c, sa.select(corrections.c.label)
    return query.where(
        corrections.c.job_id == table.job_id, corrections.c.index == table.index
    ).scalar_subquery()


def folder() -> sa.ColumnElement[str]:
    """Return the name of the folder that directly contains a prediction's image; empty if there is none."""
    return _last_part(sa.func.rtrim(_until_last_slash(predictions.c.name), "/"))


def _last_part(path: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    return sa.func.replace(path, _until_last_slash(path), "")


def _until_last_slash(path: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    # Neither database has a function for the last slash: strip the characters that are none from the end.
    return sa.func.rtrim(path, sa.func.replace(path, "/", ""))
