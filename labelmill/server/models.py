"""`/v1/models`, `/v1/runs`, `/v1/datasets` and `/v1/workers`: read, promote, roll back and train."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from jobs.dataset import DatasetVersion
from jobs.errors import NotFound
from jobs.ids import is_id
from jobs.ledger.runs import Run
from jobs.model import Model
from labelmill.server.access import AdminSession, SubmitSession
from labelmill.server.problems import PROBLEMS
from labelmill.server.schemas import (
    NO_NUL,
    DatasetObject,
    HealthObject,
    Listing,
    ModelObject,
    NewRun,
    Promotion,
    PromotionWanted,
    RollbackWanted,
    RunObject,
    WorkerObject,
    seconds,
)

router = APIRouter(tags=["models and training"], responses=PROBLEMS)

DatasetName = Annotated[str | None, Query(max_length=64, pattern=NO_NUL)]


@router.get("/models")
def list_models(session: SubmitSession, dataset: DatasetName = None) -> Listing[ModelObject]:
    """List the models, newest first."""
    return Listing(data=list(map(_to_model, session.client.models(dataset=dataset))))


@router.get("/models/{model_id}")
def show_model(model_id: str, session: SubmitSession, dataset: DatasetName = None) -> ModelObject:
    """Show a model, by its id or an alias such as `champion`."""
    return _to_model(session.client.model(model_id, dataset=dataset))


@router.get("/models/{model_id}/health")
def show_health(model_id: str, session: SubmitSession, dataset: DatasetName = None) -> HealthObject:
    """Compare a model's recent results with its evaluation, to find out whether the images have changed."""
    found = session.client.health(model_id, dataset=dataset)
    return HealthObject(
        model=found.model,
        dataset=found.dataset,
        accuracy=found.accuracy,
        live=asdict(found.live),
        jobs=found.jobs,
        images=found.images,
        warnings=found.warnings,
        unknown=found.unknown,
    )


@router.post("/models/{model_id}/promote")
def promote_model(model_id: str, wanted: PromotionWanted, session: AdminSession) -> Promotion:
    """Make a model its dataset's champion if it passes the gate."""
    model = session.client.model(model_id)
    verdict = session.client.promote(model.id, force=wanted.force)
    return Promotion(model=model.id, promoted=verdict.promote, reason=verdict.reason)


@router.post("/models/rollback")
def roll_back(wanted: RollbackWanted, session: AdminSession) -> ModelObject:
    """Make a dataset's previous champion the champion again, and return it."""
    promotion = session.client.rollback(dataset=wanted.dataset)
    return _to_model(session.client.model(promotion.model_id))


@router.get("/runs")
def list_runs(session: SubmitSession, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Listing[RunObject]:
    """List the latest training runs, newest first."""
    return Listing(data=list(map(_to_run, session.client.runs(limit=limit))))


@router.get("/runs/{run_id}")
def show_run(run_id: str, session: SubmitSession) -> RunObject:
    """Show a training run."""
    if not is_id(run_id):
        raise NotFound(f"There is no training run {run_id!r}.")
    return _to_run(session.client.run(run_id))


@router.post("/runs", status_code=HTTPStatus.ACCEPTED)
def request_run(wanted: NewRun, session: AdminSession) -> RunObject:
    """Request a training run; its model becomes the champion if it passes the gate."""
    run_id = session.client.retrain(**wanted.model_dump(exclude_none=True))
    return _to_run(session.client.run(run_id))


@router.get("/datasets")
def list_datasets(session: SubmitSession) -> Listing[DatasetObject]:
    """List the datasets in their latest versions. The built-in dataset `mnist` has none."""
    return Listing(data=list(map(_to_dataset, session.client.datasets())))


@router.get("/workers")
def list_workers(session: SubmitSession) -> Listing[WorkerObject]:
    """List the workers and trainers that were seen in the last 24 hours."""
    return Listing(
        data=[
            WorkerObject(
                name=worker.name,
                queue=worker.queue,
                processes=worker.processes,
                version=worker.version,
                alive=worker.alive,
                seen_at=int(worker.seen_at.timestamp()),
                chunks=len(worker.chunks),
                run=worker.run,
                problem=worker.problem,
            )
            for worker in session.client.workers()
        ]
    )


def _to_model(model: Model) -> ModelObject:
    return ModelObject(
        id=model.id,
        created=int(model.created_at.timestamp()),
        dataset=model.dataset,
        aliases=list(model.aliases),
        architecture=model.architecture,
        accuracy=model.accuracy,
        classes=list(model.classes),
        sha256=model.sha256,
        pinned_at=seconds(model.pinned_at),
    )


def _to_run(run: Run) -> RunObject:
    return RunObject(
        id=run.id,
        status=run.state,
        dataset=run.dataset,
        created_at=seconds(run.requested_at),
        started_at=seconds(run.started_at),
        finished_at=seconds(run.finished_at),
        epochs_done=run.epochs_done,
        model=run.model_id,
        accuracy=run.accuracy,
        verdict=run.verdict,
        error=run.error,
    )


def _to_dataset(version: DatasetVersion) -> DatasetObject:
    return DatasetObject(
        id=version.dataset,
        version=version.version,
        classes=list(version.classes),
        images=version.summary["images"],
        fingerprint=version.fingerprint,
        created_at=int(version.created_at.timestamp()),
    )
