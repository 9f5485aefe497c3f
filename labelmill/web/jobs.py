"""`/jobs`: the list of jobs, newest first."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from jobs.errors import LabelmillError
from jobs.ids import is_id
from jobs.ledger.jobs.queries import full_id
from jobs.ledger.jobs.submission import find_key
from jobs.ledger.learning.models import datasets_of
from jobs.schema import JobState
from labelmill.server.access import Session, SubmitSession
from labelmill.server.batches import list_batches
from labelmill.server.schemas import MAX_PAIR, NO_NUL
from labelmill.web.rendering import page

router = APIRouter(prefix="/jobs")

#: Jobs of one page.
_JOBS: Final = 30


@router.get("")
def show_jobs(
    request: Request,
    session: SubmitSession,
    q: Annotated[str, Query(max_length=MAX_PAIR, pattern=NO_NUL)] = "",
    state: Annotated[JobState | None, Query()] = None,
    after: Annotated[str | None, Query(max_length=64, pattern=NO_NUL)] = None,
) -> Response:
    """Show the jobs: all, those in one state, or those that a search finds."""
    q = q.strip()
    if q and (job_id := _find_job(session, q)):
        return RedirectResponse(f"/jobs/{job_id}", HTTPStatus.SEE_OTHER)
    pair = q if "=" in q.lstrip("=") else None
    nothing_found = bool(q) and pair is None
    found, datasets = None, {}
    if not nothing_found:
        found = list_batches(session, limit=_JOBS, after=after, state=state, metadata=pair)
        with session.client.ledger.reading() as connection:
            datasets = datasets_of(connection, {each.model for each in found.data})
    return page(
        request,
        "jobs.html",
        q=q,
        state=state,
        states=list(JobState),
        found=found,
        datasets=datasets,
        after=after,
    )


def _find_job(session: Session, typed: str) -> str | None:
    """Return the id of the job that an id, the beginning of one, or a submission key means, or None."""
    with session.client.ledger.reading() as connection:
        holder = find_key(connection, session.project, typed)
        if holder is not None:
            return holder.job_id
        try:
            found = full_id(connection, "job", typed, project=session.project)
        except LabelmillError:  # too short, or several
            return None
    return found if is_id(found) else None
