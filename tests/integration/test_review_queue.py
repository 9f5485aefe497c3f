"""The queue of images to review: which images people are given, and that two people get different ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
import sqlalchemy as sa

from jobs.ledger import Ledger
from jobs.ledger.api.projects import create_project
from jobs.ledger.jobs.review_queue import ReviewKind, claim_images, release_images
from jobs.ledger.jobs.shadows import begin_shadow
from jobs.models.dataset import MNIST
from jobs.options import DEFAULT_PROJECT
from jobs.schema import db_now, jobs, review_claims
from labelmill.client import Client
from tests.conftest import Job
from tests.outcomes import Outcome

#: Four are unsure, and one has an error.
CONFIDENCES: Final = (0.35, 0.99, 0.2, None, 0.95, 0.7, 0.5, 0.999)
UNSURE: Final = [2, 0, 6, 5]


@pytest.fixture
def job(submitted, worker) -> Job:
    """Return a finished job of eight images."""
    job: Job = submitted(len(CONFIDENCES), chunk_images=len(CONFIDENCES))
    outcomes = [
        Outcome(f"{index}.png", None, None, "corrupt")
        if share is None
        else Outcome(f"{index}.png", "7", share)
        for index, share in enumerate(CONFIDENCES)
    ]
    worker.work(job.chunks[0], outcomes)
    return job


@pytest.fixture
def claimed(ledger: Ledger) -> Callable[..., list[int]]:
    """Return a function: the indices of the images that a person is given."""

    def claimed(
        holder: str,
        kind: ReviewKind = ReviewKind.UNSURE,
        *,
        limit: int = 10,
        project: str = DEFAULT_PROJECT,
        job_id: str | None = None,
    ) -> list[int]:
        with ledger.transaction() as connection:
            found = claim_images(
                connection, kind, project=project, dataset=MNIST, job_id=job_id, holder=holder, limit=limit
            )
        return [each.prediction.index for each in found]

    return claimed


def test_unsure_images_come_least_sure_first_without_corrected_ones(
    client: Client, job: Job, claimed
) -> None:
    client.correct(job.id, 0, "1")
    assert claimed("anna", limit=2) == [2, 6]
    assert claimed("anna") == [5]


def test_two_people_are_given_different_images(ledger: Ledger, job: Job, claimed) -> None:  # noqa: ARG001
    # Given an image that one person has
    assert claimed("anna", limit=1) == UNSURE[:1]

    # Then another one gets the others, and nobody gets one twice
    assert claimed("ben", limit=10) == UNSURE[1:]
    assert claimed("anna") == []

    # And those that are given back, or kept too long, are given to others
    with ledger.transaction() as connection:
        release_images(connection, "anna")
    assert claimed("ben") == UNSURE[:1]
    with ledger.transaction() as connection:
        connection.execute(review_claims.update().values(until=db_now(-1)))
    assert claimed("carla") == UNSURE
    with ledger.reading() as connection:
        assert set(connection.scalars(sa.select(review_claims.c.holder))) == {"carla"}


def test_a_random_sample_is_of_all_labels(job: Job, claimed) -> None:  # noqa: ARG001
    labelled = {index for index, share in enumerate(CONFIDENCES) if share is not None}
    found: set[int] = set()
    for _ in range(100):
        found |= set(claimed("anna", ReviewKind.RANDOM))
    assert found == labelled


def test_images_of_other_projects_and_jobs_are_not_given(
    ledger: Ledger, job: Job, submitted, claimed
) -> None:
    with ledger.transaction() as connection:
        create_project(connection, "other")
    assert claimed("anna", project="other") == []
    assert claimed("anna", job_id=submitted(3).id) == []
    assert claimed("anna", job_id=job.id) == UNSURE


def test_images_on_which_champion_and_challenger_disagree_are_given(
    ledger: Ledger, job: Job, claimed, make_model, make_job, worker
) -> None:
    # Without a challenger, there are none
    assert claimed("anna", ReviewKind.DISAGREEMENT) == []

    # Given a challenger that has classified the same images
    challenger = make_model(b"challenger", champion=False)
    shadow = make_job([len(CONFIDENCES)], model=challenger)
    with ledger.transaction() as connection:
        begin_shadow(connection, challenger.id)
        connection.execute(jobs.update().where(jobs.c.id == shadow.id).values(shadow_of=job.id))
    worker.work(shadow.chunks[0], [Outcome("", label, 0.9) for label in "71777177"])

    # Then those are given to which both gave different labels
    assert sorted(claimed("anna", ReviewKind.DISAGREEMENT)) == [1, 5]
