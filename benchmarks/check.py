"""A round counts only if its rows are right: each image once, and both sides of one opinion."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.schema import predictions


class WrongRows(LabelmillError):
    """The rows of a round are not what they should be."""


def check_rows(pipeline: tuple[str, str], bare_loop: tuple[str, str], *, images: int) -> None:
    """Compares what the two sides, each a database's URL and a job's id, have written. Raises WrongRows."""
    compare_labels(read_labels(*pipeline, images=images), read_labels(*bare_loop, images=images))


def compare_labels(ours: dict[str, str], theirs: dict[str, str], *, whose: str = "the bare loop") -> None:
    """Compares labels by name. Raises WrongRows where an image or a label is not the same on both sides."""
    if ours.keys() != theirs.keys():
        raise WrongRows(f"the pipeline and {whose} have classified other images")
    different = [name for name, label in ours.items() if label != theirs[name]]
    if different:
        raise WrongRows(f"{len(different)} images got other labels than in {whose}: {different[:3]}")


def read_labels(url: str, job_id: str, *, images: int) -> dict[str, str]:
    """The label of each image by its name. Raises WrongRows unless each of so many has one."""
    query = sa.select(predictions.c.name, predictions.c.label).where(predictions.c.job_id == job_id)
    with contextlib.closing(Ledger(url)) as ledger, ledger.reading() as connection:
        rows = connection.execute(query).all()
    labels = {name: label for name, label in rows if label is not None}
    if len(rows) != images or len(labels) != images:
        raise WrongRows(f"{len(rows):,} rows with {len(labels):,} names and labels for {images:,} images")
    return labels
