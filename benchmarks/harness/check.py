"""Check the rows of a round: each image once, and with the same label on both sides."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.schema import predictions


class WrongRows(LabelmillError):
    """The rows of a round are not what they should be."""


def check_rows(pipeline: tuple[str, str], bare_loop: tuple[str, str], *, images: int) -> None:
    """Compare the rows of two jobs, each given as a database's URL and a job's id. Raises WrongRows."""
    compare_labels(read_labels(*pipeline, images=images), read_labels(*bare_loop, images=images))


def compare_labels(ours: dict[str, str], theirs: dict[str, str], *, whose: str = "the bare loop") -> None:
    """Compare labels by name. Raises WrongRows if an image or a label differs."""
    if ours.keys() != theirs.keys():
        raise WrongRows(f"the pipeline and {whose} have classified other images")
    different = [name for name, label in ours.items() if label != theirs[name]]
    if different:
        raise WrongRows(f"{len(different)} images got other labels than in {whose}: {different[:3]}")


def read_labels(url: str, job_id: str, *, images: int) -> dict[str, str]:
    """Return each image's label by its name. Raises WrongRows unless there are so many."""
    query = sa.select(predictions.c.name, predictions.c.label).where(predictions.c.job_id == job_id)
    with contextlib.closing(Ledger(url)) as ledger, ledger.reading() as connection:
        rows = connection.execute(query).all()
    labels = {name: label for name, label in rows if label is not None}
    if len(rows) != images or len(labels) != images:
        raise WrongRows(f"{len(rows):,} rows with {len(labels):,} names and labels for {images:,} images")
    return labels
