"""Projects take turns by the work that is claimed for them, and within a project priority decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.projects import create_project, list_projects
from jobs.ledger.jobs.claims import claim_next
from jobs.limits import MAX_PRIORITY
from jobs.schema import SHADOWS, chunks, jobs, projects
from tests.conftest import Worker

#: A chunk of a full claim.
CHUNK = 1_000


@pytest.fixture(autouse=True)
def _birds(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        create_project(connection, "birds")
        create_project(connection, "cats")


@pytest.fixture
def claims(ledger: Ledger, worker: Worker) -> Callable[[int], list[tuple[str, int]]]:
    """Return a function: `claims(3)` claims three times and returns whose images, and how many."""

    def claims(times: int) -> list[tuple[str, int]]:
        found = []
        for _ in range(times):
            taken = worker.claim_next(images=CHUNK)
            with ledger.reading() as connection:
                [project] = connection.scalars(sa.select(jobs.c.project).where(jobs.c.id == taken[0].job_id))
            found.append((project, sum(claim.images for claim in taken)))
        return found

    return claims


def test_projects_share_the_workers_whatever_the_priority_of_their_jobs(make_job, claims):
    # Given a large job of one project at the highest priority, and one of another project at the lowest
    make_job([CHUNK] * 20, project="birds", priority=MAX_PRIORITY)
    make_job([CHUNK] * 20, project="cats", priority=-MAX_PRIORITY)
    # When workers claim, Then each project gets its half
    shares = Counter(project for project, _ in claims(20))
    assert shares == {"birds": 10, "cats": 10}


def test_turns_count_images_and_not_claims(make_job, claims):
    # Given projects whose chunks differ in size
    make_job([CHUNK] * 30, project="birds")
    make_job([CHUNK // 10] * 30, project="cats")
    # When workers claim, Then the one with the smaller chunks claims more often
    shares: Counter[str] = Counter()
    for project, images in claims(22):
        shares[project] += images
    assert abs(shares["birds"] - shares["cats"]) <= CHUNK


def test_a_project_that_had_no_work_does_not_make_up_for_it(make_job, claims):
    # Given a project for which far more images were classified, beside a second one that has ended
    make_job([CHUNK] * 60, project="birds")
    make_job([CHUNK] * 5, project="cats")
    claims(40)
    # When a third one begins to submit, which never had any work
    make_job([CHUNK] * 20)
    # Then it is next, and from then on gets no more than its half
    found = [project for project, _ in claims(16)]
    assert "default" in found[:2]
    assert 7 <= found.count("default") <= 9


def test_a_small_job_waits_for_one_claim_of_another_project_at_most(make_job, claims):
    make_job([CHUNK] * 600, project="birds", priority=MAX_PRIORITY)
    claims(5)
    make_job([1], project="cats")
    assert ("cats", 1) in claims(2)


def test_shadows_come_after_all_projects(ledger, make_job, claims):
    shadow, job = make_job([CHUNK] * 2), make_job([CHUNK] * 2, priority=-MAX_PRIORITY)
    with ledger.transaction() as connection:
        for table, column in ((jobs, jobs.c.id), (chunks, chunks.c.job_id)):
            connection.execute(table.update().where(column == shadow.id).values(project=SHADOWS))
    assert job.id != shadow.id
    assert [project for project, _ in claims(4)] == ["default", "default", SHADOWS, SHADOWS]
    # and they are no project that anybody sees
    with ledger.reading() as connection:
        assert [each.name for each in list_projects(connection)] == ["birds", "cats", "default"]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_project_whose_chunks_are_all_being_claimed_holds_nobody_up(ledger, make_job, worker):
    # Given a project that is next, whose only chunk another worker is claiming at this moment
    make_job([1], project="birds")
    job = make_job([1])
    with ledger.transaction() as connection:
        connection.execute(projects.update().where(projects.c.name == "default").values(turn=5))
    with ledger.transaction() as connection:
        first = claim_next(
            connection, owner="x", token=new_id(), lease_seconds=60, images_for=lambda _model: CHUNK
        )
        # When a second worker claims, Then it gets the chunk of the other project
        [claim] = worker.claim_next()
    assert claim.job_id == job.id != first[0].job_id
