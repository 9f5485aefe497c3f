"""What people say of images, read from a file: CSV with a header, or a JSON object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from jobs.errors import UserError

#: What a row of a file says; other columns are passed over. The job may be called as corrections are printed.
COLUMNS: Final = ("job", "index", "label")
_JOB_TOO: Final = "job_id"

#: The highest number that the ledger can hold.
MAX_INDEX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, order=True)
class CorrectionRequest:
    """What somebody says of an image."""

    job_id: str
    index: int
    label: str
    line: int = 0  # of the file that says it, from 1


def requests_in(
    lines: Iterable[str], *, jsonl: bool, job_id: str | None = None
) -> Iterator[tuple[int, CorrectionRequest | UserError]]:
    """What each row says, or what is wrong with it, with the number of its line. With `job_id` all are of
    this job, and need not say so. Raises UserError where no header names the columns.
    """
    for line, row in _objects(lines) if jsonl else _rows(lines, job_id):
        if isinstance(row, UserError):
            yield line, row
            continue
        try:
            yield line, _to_request(row, line, job_id)
        except UserError as error:
            yield line, error


def _rows(lines: Iterable[str], job_id: str | None) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """The rows of CSV with the number of the line each ends in. Raises UserError where no header names the
    columns.
    """
    reader = csv.DictReader(lines, strict=True)
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        _check_header(columns, job_id)
        reader.fieldnames = columns
        for row in reader:
            more = len(row.pop(None, ()))  # of a row that is too long
            if more:  # a comma in a name that has no quotes: what is read as its label may be anything
                told = f"it has {len(columns) + more} cells, and the first line names {len(columns)} columns."
                yield reader.line_num, UserError(told)
            else:
                yield reader.line_num, row
    except csv.Error as error:
        yield reader.reader.line_num, UserError(f"it is not CSV: {error}.")


def _check_header(columns: list[str], job_id: str | None) -> None:
    """Raises UserError where these columns do not say whose label is meant, or say it twice."""
    needed = COLUMNS if job_id is None else COLUMNS[1:]
    named = {COLUMNS[0] if name == _JOB_TOO else name for name in columns}
    if not named.issuperset(needed):
        if columns and columns[0].startswith("{"):
            hint = ". JSON lines are read from a file whose name ends in .jsonl or .ndjson"
        elif len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
            hint = ", with commas between them"
        elif named.issuperset(COLUMNS[1:]):
            hint = " (job is left out where JOB is said: `labelmill correct JOB --from FILE`)"
        else:
            hint = ""
        raise UserError(f"The first line must name the columns {', '.join(needed)}{hint}.")
    for name in (*COLUMNS, _JOB_TOO):
        if columns.count(name) > 1:
            raise UserError(f"The first line names the column {name} twice.")


def _objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """The objects of JSON lines with the number of each line; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                yield number, UserError(f"it is not JSON: {error}.")
            except RecursionError:  # brackets within brackets, thousands of them
                yield number, UserError("it is no JSON object.")
            else:
                yield number, value if isinstance(value, dict) else UserError("it is no JSON object.")


def _to_request(row: dict[str, Any], line: int, job_id: str | None) -> CorrectionRequest:
    """Raises UserError."""
    row = {**row, "job": row.get("job") or row.get(_JOB_TOO) or job_id}
    missing = [column for column in COLUMNS if row.get(column) in (None, "")]
    if missing:
        raise UserError(f"it has no {' and no '.join(missing)}.")
    job, index, label = (str(row[column]) for column in COLUMNS)
    if not (index.isascii() and index.isdigit() and len(index) <= len(str(MAX_INDEX))):
        raise UserError(f"its index is {index!r}, not a number from 0.")
    job = job.strip().lower()  # as where it is typed
    if job_id not in (None, job):
        raise UserError(f"it is of job {job}, not of {job_id}.")
    return CorrectionRequest(job, int(index), label, line)
