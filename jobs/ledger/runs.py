"""Training runs, as rows: what was trained on what, epoch by epoch, and the verdict."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.schema import RunState, db_now, training_epochs, training_runs


def open_run(
    connection: Connection, run_id: str, *, recipe: dict[str, Any], data_source: str, data_fingerprint: str
) -> None:
    """A run that begins now."""
    connection.execute(
        training_runs.insert().values(
            id=run_id,
            state=RunState.RUNNING,
            recipe=recipe,
            data_source=data_source,
            data_fingerprint=data_fingerprint,
            started_at=db_now(),
        )
    )


def add_epoch(connection: Connection, run_id: str, epoch: dict[str, float]) -> None:
    """One finished epoch: epoch (from 1), loss, accuracy, val_loss, val_accuracy, seconds."""
    connection.execute(training_epochs.insert().values(run_id=run_id, **epoch))


def finish_run(connection: Connection, run_id: str, *, model_id: str, verdict: str) -> None:
    """The run made a model; the verdict says what became of it."""
    connection.execute(
        training_runs.update()
        .where(training_runs.c.id == run_id)
        .values(state=RunState.DONE, model_id=model_id, verdict=verdict, finished_at=db_now())
    )


def fail_run(connection: Connection, run_id: str, error: str) -> None:
    """The run ended without a model."""
    connection.execute(
        training_runs.update()
        .where(training_runs.c.id == run_id)
        .values(state=RunState.FAILED, error=error, finished_at=db_now())
    )


def epochs_of(connection: Connection, run_id: str) -> list[Row[Any]]:
    """A run's epochs, in order."""
    return list(
        connection.execute(
            sa.select(training_epochs)
            .where(training_epochs.c.run_id == run_id)
            .order_by(training_epochs.c.epoch)
        )
    )
