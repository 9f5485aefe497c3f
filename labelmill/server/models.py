"""`/v1/models`, `/v1/runs`, `/v1/schedules`, `/v1/datasets` and `/v1/workers`: read, promote, and train."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from jobs.errors import NotFound
from jobs.ids import is_id
from jobs.ledger.api.files import get_file
from labelmill.server.access import AdminSession, Session, SubmitSession
from labelmill.server.datasets import DatasetPath
from labelmill.server.files import id_in
from labelmill.server.problems import ApiError, ProblemCode, conflicts
from labelmill.server.schemas import (
    NO_NUL,
    DatasetObject,
    Decision,
    HealthObject,
    Listing,
    ModelObject,
    PromotionWanted,
    RollbackWanted,
    RunObject,
    RunWanted,
    ScheduleObject,
    ScheduleWanted,
    WorkerObject,
)
from producer.sources.archives import archive_format

router = APIRouter(tags=["models and training"])

DatasetName = Annotated[
    str | None,
    Query(
        max_length=64,
        pattern=NO_NUL,
        description="the dataset, also that of an alias. Default: `mnist` for an alias, all for a list",
    ),
]


@router.get("/models", responses={HTTPStatus.NOT_FOUND: {}})
def list_models(session: SubmitSession, dataset: DatasetName = None) -> Listing[ModelObject]:
    """List the models, newest first."""
    return Listing(data=list(map(ModelObject.of, session.client.models(dataset=dataset))))


@router.get("/models/{model_id}")
def show_model(model_id: str, session: SubmitSession, dataset: DatasetName = None) -> ModelObject:
    """Show a model, by its id or an alias such as `champion`."""
    return ModelObject.of(session.client.model(model_id, dataset=dataset))


@router.get("/models/{model_id}/health")
def show_health(model_id: str, session: SubmitSession, dataset: DatasetName = None) -> HealthObject:
    """Compare a model's recent results with its evaluation, to find out whether the images have changed."""
    return HealthObject.of(session.client.health(model_id, dataset=dataset))


@router.post("/models/{model_id}/promote")
def promote_model(model_id: str, session: AdminSession, wanted: PromotionWanted | None = None) -> Decision:
    """Make a model its dataset's champion if it passes the gate."""
    model = session.client.model(model_id)
    verdict = session.client.promote(model.id, force=wanted is not None and wanted.force)
    return Decision(model=model.id, promoted=verdict.promote, reason=verdict.reason)


@router.post("/models/rollback", responses={HTTPStatus.NOT_FOUND: {}, HTTPStatus.CONFLICT: {}})
def roll_back(session: AdminSession, wanted: RollbackWanted | None = None) -> ModelObject:
    """Make a dataset's previous champion the champion again, and return it."""
    promotion = session.client.rollback(dataset=(wanted or RollbackWanted()).dataset)
    return ModelObject.of(session.client.model(promotion.model_id))


@router.post("/models/{model_id}/shadow", responses={HTTPStatus.CONFLICT: {}})
def begin_shadow(model_id: str, session: AdminSession) -> ModelObject:
    """Make a model its dataset's challenger: it classifies a share of the images, too, for comparison."""
    return ModelObject.of(session.client.begin_shadow(session.client.model(model_id).id))


@router.delete("/models/{model_id}/shadow", responses={HTTPStatus.CONFLICT: {}})
def end_shadow(model_id: str, session: AdminSession) -> ModelObject:
    """Stop the challenger of the model's dataset. Its results so far are kept."""
    model = session.client.model(model_id)
    session.client.end_shadow(dataset=model.dataset)
    return ModelObject.of(session.client.model(model.id))


@router.get("/runs")
def list_runs(
    session: SubmitSession, limit: Annotated[int, Query(ge=1, le=100, description="at most this many")] = 20
) -> Listing[RunObject]:
    """List the latest training runs, newest first."""
    return Listing(data=list(map(RunObject.of, session.client.runs(limit=limit))))


@router.get("/runs/{run_id}")
def show_run(run_id: str, session: SubmitSession) -> RunObject:
    """Show a training run, by its id or the first characters of it."""
    return RunObject.of(session.client.run(_run_id(session, run_id)))


@router.post(
    "/runs",
    status_code=HTTPStatus.ACCEPTED,
    responses={HTTPStatus.NOT_FOUND: {}, HTTPStatus.CONFLICT: {}},
)
def request_run(wanted: RunWanted, session: AdminSession) -> RunObject:
    """Request a training run; its model becomes the champion if it passes the gate.

    With `input_file_id`, the run first adds the archive's images to the dataset. If that fails, nothing is
    trained; images that were added stay, whatever becomes of the training.
    """
    file_id = _archive_id(session, wanted.input_file_id) if wanted.input_file_id is not None else None
    with conflicts():
        run_id = session.client.retrain(wanted, input_file_id=file_id, delete_input=wanted.delete_input)
    return RunObject.of(session.client.run(run_id))


@router.post("/runs/{run_id}/cancel")
def cancel_run(run_id: str, session: AdminSession) -> RunObject:
    """Stop a training run. A cancelled run changes nothing."""
    by = f"the key {session.key.name}"
    return RunObject.of(session.client.cancel_run(_run_id(session, run_id), by=by))


@router.get("/schedules")
def list_schedules(session: SubmitSession) -> Listing[ScheduleObject]:
    """List the schedules of all datasets that have one, by name."""
    return Listing(data=list(map(ScheduleObject.of, session.client.schedules())))


@router.put("/schedules/{dataset}", responses={HTTPStatus.NOT_FOUND: {}, HTTPStatus.CONFLICT: {}})
def set_schedule(dataset: DatasetPath, wanted: ScheduleWanted, session: AdminSession) -> ScheduleObject:
    """Set when a dataset's model is trained. A time that you leave out is switched off."""
    training = wanted.training.how if wanted.training is not None else {}
    with conflicts():
        schedule = session.client.schedule(
            dataset,
            cron=wanted.cron or "never",
            after_corrections=wanted.after_corrections or 0,
            always=wanted.always,
            **training,
        )
    return ScheduleObject.of(session.client.schedule_status(schedule))


@router.get("/datasets")
def list_datasets(session: SubmitSession) -> Listing[DatasetObject]:
    """List the datasets in their latest versions."""
    return Listing(data=list(map(DatasetObject.of, session.client.datasets())))


@router.get("/workers")
def list_workers(session: SubmitSession) -> Listing[WorkerObject]:
    """List the workers and trainers that were seen in the last 24 hours."""
    return Listing(data=list(map(WorkerObject.of, session.client.workers())))


def _archive_id(session: Session, typed: str) -> str:
    """Return the id of an uploaded archive in the ledger. Raises NotFound; ApiError if it is no archive.

    A manifest is none: its rows could name files of the server and addresses in its network.
    """
    with session.client.ledger.reading() as connection:
        file = get_file(connection, id_in(typed), project=session.project)
    if archive_format(file.name, file.name, b"") is None:  # by its name alone
        raise ApiError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            ProblemCode.INVALID,
            f"input_file_id: {file.name} is not an archive by its name: upload a ZIP or TAR archive with one "
            "subfolder per class.",
        )
    return file.id


def _run_id(session: Session, typed: str) -> str:
    """Return the run's full id. Raises NotFound, Conflict."""
    found = session.client.run_id(typed)
    if not is_id(found):
        raise NotFound(f"There is no training run {typed!r}: `GET /v1/runs` lists them.")
    return found
