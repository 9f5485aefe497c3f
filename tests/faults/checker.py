"""Compares what was submitted with what the ledger holds, and uses no code of Labelmill's to do it.

It opens the database by its driver and reads the rows as anybody could: what writes a ledger must not be what
says that the ledger is right. `tests/faults/test_checker.py` feeds it ledgers that are wrong.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg

from jobs.ledger.sqlite import driver


class Expected(NamedTuple):
    """One submitted image: its name, and the label or error code it must get; None: any label."""

    name: str
    answer: str | None


@dataclass
class Verdict:
    """What is wrong with a job; all is well where nothing is counted and no problem named."""

    images: int = 0
    #: Submitted images without an outcome.
    lost: int = 0
    #: Outcomes beyond the first of an image, and images that two finished chunks claim for themselves.
    doubled: int = 0
    #: Outcomes that are another image's, another model's, or none that this image can have.
    wrong: int = 0
    problems: list[str] = field(default_factory=list)
    #: Waits until the queue that the job came through is empty; None: it came through none.
    wait_for_silence: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.doubled or self.wrong or self.problems)

    def __str__(self) -> str:
        counted = f"{self.lost} lost, {self.doubled} doubled, {self.wrong} wrong of {self.images} images"
        return "; ".join([counted, *self.problems[:10]])


def check_job(url: str, job_id: str, expected: Sequence[Expected]) -> Verdict:
    """Judges one job that has ended. `url`: the ledger's, as `sqlite:///path` or `postgresql://...`."""
    verdict = Verdict(images=len(expected))
    with selecting(url) as select:
        _check_outcomes(verdict, select, job_id, expected)
        _check_chunks(verdict, select, job_id, len(expected))
        _check_counters(verdict, select, job_id)
    return verdict


def chunk_rows(url: str, job_id: str) -> list[dict[str, Any]]:
    """All a job's chunks: state, images, attempts, crashes and releases."""
    columns = ("first_index", "state", "images", "attempts", "crashes", "releases", "error")
    with selecting(url) as select:
        found = select(
            f"SELECT {', '.join(columns)} FROM chunks WHERE job_id = ? ORDER BY first_index", job_id
        )
    return [dict(zip(columns, row, strict=True)) for row in found]


def attempts_are_bounded(url: str, job_id: str) -> bool:
    """No chunk was tried without end. A chunk crashes twice before it is halved, and each half once
    more, a lone one three times; with its end, an image of a chunk of 512 sees at most 2 + 8 + 3 + 1 attempts
    that were not released, and one more for a lease that ran out.
    """
    return all(chunk["attempts"] - chunk["releases"] <= 15 for chunk in chunk_rows(url, job_id))


class _Select:
    """Runs a SELECT with ? as its placeholder on either database."""

    def __init__(self, connection: Any, placeholder: str) -> None:
        self._connection = connection
        self._placeholder = placeholder

    def __call__(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        rows = self._connection.execute(statement.replace("?", self._placeholder), values)
        return [tuple(row) for row in rows.fetchall()]


@contextlib.contextmanager
def selecting(url: str) -> Iterator[_Select]:
    """Open the database at this URL to read its rows."""
    scheme, _, rest = url.partition(":///")
    if scheme == "sqlite":
        with contextlib.closing(driver().connect(rest, timeout=30)) as sqlite:
            yield _Select(sqlite, "?")
    else:
        plain = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))
        with psycopg.connect(plain) as postgresql:
            yield _Select(postgresql, "%s")


def _check_outcomes(verdict: Verdict, select: _Select, job_id: str, expected: Sequence[Expected]) -> None:
    rows = select(
        'SELECT "index", name, label, confidence, error, detail FROM predictions WHERE job_id = ?', job_id
    )
    seen = Counter(index for index, *_ in rows)
    verdict.lost = sum(index not in seen for index in range(len(expected)))
    verdict.doubled = sum(count - 1 for count in seen.values())
    for index, name, label, confidence, error, detail in rows:
        if not 0 <= index < len(expected):
            verdict.wrong += 1
            verdict.problems.append(f"image {index} was never submitted")
        elif problem := _wrong(expected[index], name, label, confidence, error):
            verdict.wrong += 1
            verdict.problems.append(f"image {index}: {problem}" + (f" ({detail})" if detail else ""))


def _wrong(
    expected: Expected, name: str, label: str | None, confidence: float | None, error: str | None
) -> str | None:
    """What is wrong with one outcome, if anything."""
    if name != expected.name:
        return f"is named {name!r}, was submitted as {expected.name!r}"
    if (label is None) == (error is None):
        return f"has the label {label!r} and the error {error!r}, not one of them"
    if (label is None) != (confidence is None):
        return f"has the label {label!r} and the confidence {confidence!r}"
    if expected.answer is None:
        return None if error is None else f"got the error {error!r}, not a label"
    answer = error if label is None else label
    return None if answer == expected.answer else f"got {answer!r}, not {expected.answer!r}"


def _check_chunks(verdict: Verdict, select: _Select, job_id: str, images: int) -> None:
    """Finished chunks cover every index exactly once, and nothing is left open."""
    chunks = select("SELECT state, first_index, images FROM chunks WHERE job_id = ?", job_id)
    left = Counter(state for state, *_ in chunks if state != "done")
    if left:
        verdict.problems.append(f"chunks that are not at their end: {dict(left)}")
    covered = Counter(_indices((first, size) for state, first, size in chunks if state == "done"))
    twice = sum(count - 1 for count in covered.values())
    if twice:
        verdict.doubled += twice
        verdict.problems.append(f"{twice} images lie in more than one finished chunk")
    if set(covered) != set(range(images)):
        verdict.problems.append(f"finished chunks cover {len(covered)} images, not {images}")


def _indices(chunks: Iterable[tuple[int, int]]) -> Iterator[int]:
    for first, images in chunks:
        yield from range(first, first + images)


def _check_counters(verdict: Verdict, select: _Select, job_id: str) -> None:
    [(succeeded, failed)] = select(
        "SELECT count(label), count(error) FROM predictions WHERE job_id = ?", job_id
    )
    found = select(
        "SELECT state, total, succeeded, failed, finished_at IS NOT NULL, "
        "(SELECT count(*) FROM models WHERE models.id = jobs.model_id) FROM jobs WHERE id = ?",
        job_id,
    )
    wanted = [("done", verdict.images, succeeded, failed, True, 1)]
    if found != wanted:
        verdict.problems.append(
            f"state, total, succeeded, failed, has an end, models are {found}, and by the rows {wanted}"
        )
