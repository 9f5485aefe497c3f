"""`/jobs/{id}`: one job, live until it ends: its progress, labels, confidences, errors and accuracy."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from jobs.ledger.jobs.browsing import Confusions, count_confusions, count_errors
from jobs.ledger.learning.health import SAMPLE_IMAGES, mix_of_job
from jobs.ledger.learning.models import get_model
from jobs.models.evaluation import CONFIDENCE_EDGES, Figures
from jobs.models.model import Model
from labelmill.labels.labelled_jobs import LabelledEvaluation
from labelmill.labels.learnt_images import learnt_images
from labelmill.reporting.labelled_job_page import accuracy_values
from labelmill.server.access import Session, SubmitSession
from labelmill.server.batches import read_batch
from labelmill.server.events import reading_of
from labelmill.server.schemas import BatchObject
from labelmill.web.bars import bars_of
from labelmill.web.rendering import page, query_of

router = APIRouter(prefix="/jobs")

#: Larger jobs are compared with their known labels only by the command: it takes many seconds.
_MAX_COMPARED: Final = 1_000_000

#: Labels and errors that are listed.
_MAX_LABELS: Final = 40


@router.get("/{job_id}")
async def show_job(job_id: str, request: Request, session: SubmitSession) -> Response:
    """Show a job. The beginning of its id is enough."""
    batch = await reading_of(request, job_id).latest()
    values = await run_in_threadpool(_summary, session, batch)
    return page(request, "job.html", batch=batch, job=batch.job, **values)


@router.get("/{job_id}/accuracy")
def show_accuracy(job_id: str, request: Request, session: SubmitSession) -> Response:
    """Show how well the labels agree with the known ones of the images, and with corrections."""
    batch = read_batch(session.client.ledger, session.project, job_id)
    found, is_too_large = None, batch.job.total > _MAX_COMPARED
    if not is_too_large:
        client = session.client
        learnt = learnt_images(client.ledger, client.store, client.settings, batch.id, batch.model)
        with client.ledger.reading() as connection:
            model = get_model(connection, batch.model)
            counted = count_confusions(connection, batch.id, tuple(model.classes), learnt)
        found = _evaluation(batch, model, counted, len(learnt))

    gallery_url = partial(_gallery_url, batch.id)
    return page(
        request,
        "accuracy.html",
        batch=batch,
        is_too_large=is_too_large,
        mistakes_url=gallery_url(mistakes=True),
        cell_url=lambda truth, label: gallery_url(truth=truth, label=label, errors=label is None),
        **(accuracy_values(found) if found else {"found": None}),
    )


def _gallery_url(job_id: str, **chosen: Any) -> str:
    """Return the URL of the job's images that match these conditions."""
    return f"/jobs/{job_id}/images?{query_of(chosen)}"


def _evaluation(
    batch: BatchObject, model: Model, counted: Confusions, learnt: int
) -> LabelledEvaluation | None:
    """Return what the counted labels say; None if no image has a known class."""
    if not any(map(any, counted.confusion)):
        return None
    figures = Figures.from_confusion(tuple(model.classes), counted.confusion)
    return LabelledEvaluation(
        model=model.id,
        figures=figures,
        errors=sum(row[-1] for row in counted.confusion),
        corrected=counted.corrected,
        unlabelled=batch.job.done - figures.total - learnt,
        unlabelled_folders=(),
        learnt=learnt,
        mistakes=(),  # the gallery shows them all
    )


def _summary(session: Session, batch: BatchObject) -> dict[str, Any]:
    """Return what a job's images got, as far as they are counted."""
    with session.client.ledger.reading() as connection:
        model = get_model(connection, batch.model)
        mix = mix_of_job(connection, batch.id, batch.job.total)
        errors = count_errors(connection, batch.id) if batch.job.failed else []
    images = partial(_gallery_url, batch.id)
    counts = [mix.confidences[place] for place in range(len(CONFIDENCE_EDGES) - 1)]
    labels = [(each, count, images(label=each)) for each, count in mix.labels.most_common(_MAX_LABELS)]
    confidences = [
        # The last bin holds its upper edge.
        (f"{low:g} to {high:g}", count, images(at_least=low, below=high if high < 1 else None))
        for (low, high), count in zip(pairwise(CONFIDENCE_EDGES), counts, strict=True)
    ]
    return {
        "model": model,
        "labels": bars_of(labels),
        "other_labels": max(0, len(mix.labels) - _MAX_LABELS),
        "confidences": bars_of(confidences),
        "errors": errors[:_MAX_LABELS],
        "counted": mix.labels.total() if batch.job.total > SAMPLE_IMAGES else None,
    }
