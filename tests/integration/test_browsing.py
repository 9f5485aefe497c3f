"""Pages of a job's images: by true class and confidence, however large the job is."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from jobs.ledger import Ledger
from jobs.ledger.jobs import browsing
from jobs.ledger.jobs.browsing import ORDERS, count_confusions, count_errors
from jobs.ledger.jobs.filters import Filter
from labelmill.client import Client
from tests.conftest import Job, plans_of
from tests.outcomes import Outcome

CLASSES: Final = tuple("0123456789")

#: Names, labels and confidences. The class of `3/b.png` is 3; those without such a folder have none.
IMAGES: Final = (
    ("0/a.png", "0", 0.99),
    ("3/b.png", "3", 0.4),
    ("photos/3/c.png", "8", 0.7),
    ("3/d/e.png", "3", 0.95),  # its folder is d
    ("13/f.png", "3", 0.5),  # and 13 is not 3
    ("8/g.png", "8", 0.6),
    ("8/h.png", None, None),
    ("i.png", "1", 0.2),
    ("/3//j.png", "5", 0.85),  # as if it had one slash
    ("a%_/4/k.png", "9", 0.3),
)


@pytest.fixture
def job(submitted, worker) -> Job:
    """Return a finished job of these images."""
    job: Job = submitted(len(IMAGES), chunk_images=len(IMAGES))
    worker.work(
        job.chunks[0],
        [Outcome(name, label, share, None if label else "corrupt") for name, label, share in IMAGES],
    )
    return job


def found(ledger: Ledger, job: Job, order: str = "index", limit: int = 3, **wanted: Any) -> list[int]:
    """Return the indices of all images that match, read a page at a time."""
    indices: list[int] = []
    after = None
    for _ in range(100):
        page = ORDERS[order](ledger, job.id, len(IMAGES), Filter(**wanted), after=after, limit=limit)
        indices += [each.index for each in page.images]
        after = page.after
        if after is None:
            return indices
    pytest.fail("the pages do not end")


@pytest.mark.parametrize("span", [1, 4, 100])
def test_images_are_found_by_true_class_and_confidence(
    ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch, span: int
) -> None:
    monkeypatch.setattr(browsing, "_SPAN", span)
    assert found(ledger, job) == list(range(len(IMAGES)))
    assert found(ledger, job, truth="3") == [1, 2, 8]
    assert found(ledger, job, truth="8") == [5, 6]
    assert found(ledger, job, truth="3", label="8") == [2]
    assert found(ledger, job, mistakes=True, classes=CLASSES) == [2, 8, 9]
    assert found(ledger, job, at_least=0.5, below=0.7) == [4, 5]
    assert found(ledger, job, error="corrupt") == [6]
    assert found(ledger, job, error="timeout") == []


def test_a_page_ends_when_its_time_is_over(ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given no time at all, then each statement is a page of its own, and all images are still found
    monkeypatch.setattr(browsing, "_SPAN", 2)
    monkeypatch.setattr(browsing, "_SECONDS", 0.0)
    page = ORDERS["index"](ledger, job.id, len(IMAGES), Filter(label="9"), after=None, limit=3)
    assert (page.images, page.after, page.seen) == ([], "1", 1)
    assert found(ledger, job, label="9") == [9]


def test_the_least_sure_come_first_page_by_page(ledger: Ledger, job: Job) -> None:
    assert found(ledger, job, "unsure", limit=2) == [7, 9, 1, 4, 5, 2, 8]
    assert found(ledger, job, "unsure", label="3") == [1, 4]


def test_a_correction_is_the_true_class(client: Client, ledger: Ledger, job: Job) -> None:
    client.correct(job.id, 2, "8")
    client.correct(job.id, 7, "2")
    assert found(ledger, job, truth="3") == [1, 8]
    assert found(ledger, job, mistakes=True, classes=CLASSES) == [7, 8, 9]


def test_labels_are_counted_by_true_class(client: Client, ledger: Ledger, job: Job) -> None:
    # Given corrections of an image in a class's folder, and of one that is in none: only the first counts
    client.correct(job.id, 2, "8")
    client.correct(job.id, 7, "2")
    with ledger.reading() as connection:
        confusion, corrected = count_confusions(connection, job.id, CLASSES)
        assert [tuple(each) for each in count_errors(connection, job.id)] == [("corrupt", 1, 6)]
        without, not_corrected = count_confusions(connection, job.id, CLASSES, left_out={2})
    counted = {(truth, place) for truth, row in enumerate(confusion) for place in range(11) if row[place]}
    assert counted == {(0, 0), (3, 3), (3, 5), (4, 9), (8, 8), (8, 10)}  # 10: no label
    assert (sum(map(sum, confusion)), confusion[8][8], corrected) == (7, 2, 1)

    # And images that are left out do not count
    assert (sum(map(sum, without)), without[8][8], not_corrected) == (6, 1, 0)


@pytest.mark.fast
def test_unsure_images_and_errors_are_found_by_their_indexes(ledger: Ledger, job: Job) -> None:
    def ask(connection: Any) -> None:
        count_errors(connection, job.id)
        for after in (None, "0.5,3"):
            connection.execute(browsing.least_sure(connection, job.id, Filter(), after=after).limit(9)).all()

    plans = [plan for _, plan in plans_of(ledger, ask)]
    # PostgreSQL names a partition's index after its columns.
    wanted = ["errors|error_index", "unsure|confidence_index", "unsure|confidence_index"]
    assert [bool(re.search(name, plan)) for name, plan in zip(wanted, plans, strict=True)] == [True] * 3
