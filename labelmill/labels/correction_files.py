"""Read corrections from a file: CSV with a header, or one JSON object per line.

A row names its image by its index in the job, or by its custom_id.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any, Final

from jobs.errors import UserError
from jobs.ledger.jobs.outcomes import Prediction

#: The columns of a file; others are ignored. `job_id` is an alias of `job`, because `--json` prints it so.
COLUMNS: Final = ("job", "index", "label")
_JOB_ALIAS: Final = "job_id"

#: An image's name, instead of its index: its owner may know no other.
_NAME: Final = "custom_id"

#: A file with this column, as `labelmill review` makes it, has labels that a person has given.
_PREDICTED: Final = "predicted"

#: The largest integer that the ledger can hold.
MAX_INDEX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, order=True)
class CorrectionRequest:
    """A request to correct one image."""

    job_id: str
    index: int
    label: str
    line: int = 0  # in the file, from 1
    confirms: bool = True  # store the label even if the image has it already, predicted or corrected


def requests_in(
    lines: Iterable[str],
    predictions: Callable[[str], Iterable[Prediction]],
    *,
    jsonl: bool,
    job_id: str | None = None,
    confirm_unchanged: bool = False,
) -> Iterator[tuple[int, CorrectionRequest | UserError | None]]:
    """Yield each row's line number with its request, with what is wrong, or with None if its label is empty.

    With `job_id`, all rows are of this job and need not name it. Raises UserError if the header is wrong.
    Unless `confirm_unchanged`, rows without the predicted label confirm nothing: their label may be it. Rows
    that name images by their custom_id come last: `predictions` returns those of a job, to find them.
    """
    by_name: dict[str, list[tuple[str, CorrectionRequest]]] = {}
    for line, row in _objects(lines) if jsonl else _rows(lines, job_id):
        if isinstance(row, UserError):
            yield line, row
            continue
        if _has_empty_label(row, jsonl=jsonl):
            yield line, None
            continue
        name = str(row[_NAME]) if row.get("index") in (None, "") and row.get(_NAME) else None
        given = row if name is None else row | {"index": 0}
        try:
            request = _to_request(given, line, job_id, confirms=confirm_unchanged or _PREDICTED in row)
        except UserError as error:
            yield line, error
            continue
        if name is None:
            yield line, request
        else:
            by_name.setdefault(request.job_id, []).append((name, request))
    for job, requests in by_name.items():
        yield from _find_by_name(requests, partial(predictions, job))


def _find_by_name(
    requests: list[tuple[str, CorrectionRequest]], predictions: Callable[[], Iterable[Prediction]]
) -> Iterator[tuple[int, CorrectionRequest | UserError]]:
    """Yield the requests for images of one job with their indices, or with what is wrong."""
    indices: dict[str, list[int]] = {name: [] for name, _request in requests}
    problem: UserError | None = None
    try:
        for each in predictions():
            if each.name in indices:
                indices[each.name].append(each.index)
    except UserError as error:
        problem = error
    for name, request in requests:
        found = indices[name]
        if problem is not None:
            yield request.line, problem
        elif len(found) == 1:
            yield request.line, replace(request, index=found[0])
        else:
            several = f"{len(found):,} images of the job have" if found else "no image of the job has"
            yield request.line, UserError(f"{several} the custom_id {name[:100]!r}: give the index.")


@dataclass(slots=True)
class CollectedRows:
    """The rows of a file: each image once, the wrong lines, and how many rows have an empty label."""

    requests: dict[tuple[str, int], CorrectionRequest] = field(default_factory=dict)
    problems: dict[int, UserError] = field(default_factory=dict)  # by line
    skipped: int = 0


def collect(rows: Iterable[tuple[int, CorrectionRequest | UserError | None]]) -> CollectedRows:
    """Sort what `requests_in` yields. Two rows of one image with different labels are a problem."""
    found = CollectedRows()
    for line, request in sorted(rows, key=itemgetter(0)):
        if request is None:
            found.skipped += 1
        elif isinstance(request, UserError):
            found.problems[line] = request
        else:
            first = found.requests.setdefault((request.job_id, request.index), request)
            if first.label != request.label:
                found.problems[line] = UserError(
                    f"its label is {request.label!r}, but line {first.line} says {first.label!r}: keep one."
                )
    return found


def summarize_problems(problems: Mapping[int, UserError]) -> str:
    """Return a message with one line for each wrong row."""
    count = "1 row is wrong" if len(problems) == 1 else f"{len(problems):,} rows are wrong"
    lines = [f"line {line}: {error}" for line, error in sorted(problems.items())]
    return "\n".join([f"{count}, and nothing is changed:", *lines])


def _has_empty_label(row: dict[str, Any], *, jsonl: bool) -> bool:
    """Return whether a row names no label on purpose: in CSV, a row that is too short has None."""
    return row.get("label") == "" or (jsonl and "label" in row and row["label"] is None)


def _rows(lines: Iterable[str], job_id: str | None) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Yield the rows of CSV with the number of their last line. Raises UserError if the header is wrong."""
    reader = csv.DictReader(lines, strict=True)
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        _check_header(columns, job_id)
        reader.fieldnames = columns
        for row in reader:
            more = len(row.pop(None, ()))  # cells of a row that is too long
            if more:  # an unquoted comma in a name: the label may be in another column
                message = (
                    f"it has {len(columns) + more} cells, and the first line names {len(columns)} columns."
                )
                yield reader.line_num, UserError(message)
            else:
                yield reader.line_num, row
    except csv.Error as error:
        yield reader.reader.line_num, UserError(f"it is not CSV: {error}.")


def _check_header(columns: list[str], job_id: str | None) -> None:
    """Raise UserError unless the columns name job, index and label, each once."""
    needed = COLUMNS if job_id is None else COLUMNS[1:]
    named = {COLUMNS[0] if name == _JOB_ALIAS else name for name in columns}
    if _NAME in named:
        named.add("index")
    if not named.issuperset(needed):
        if columns and columns[0].startswith("{"):
            hint = ". JSON lines are read from a file whose name ends in .jsonl or .ndjson"
        elif len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
            hint = ", with commas between them"
        elif named.issuperset(COLUMNS[1:]):
            hint = " (job is not needed with JOB: `labelmill correct JOB --from FILE`)"
        else:
            hint = ""
        raise UserError(f"The first line must name the columns {', '.join(needed)}{hint}.")
    for name in (*COLUMNS, _JOB_ALIAS):
        if columns.count(name) > 1:
            raise UserError(f"The first line names the column {name} twice: remove one.")


def _objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Yield the objects of JSON lines with their line numbers. Empty lines are skipped."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                yield number, UserError(f"it is not JSON: {error}.")
            except RecursionError:  # thousands of nested brackets
                yield number, UserError("it is not a JSON object.")
            else:
                yield number, value if isinstance(value, dict) else UserError("it is not a JSON object.")


def _to_request(row: dict[str, Any], line: int, job_id: str | None, *, confirms: bool) -> CorrectionRequest:
    """Return the request of a row. Raises UserError."""
    row = {**row, "job": row.get("job") or row.get(_JOB_ALIAS) or job_id}
    missing = [column for column in COLUMNS if row.get(column) in (None, "")]
    if missing:
        raise UserError(f"it has no {' and no '.join(missing)}: add what is missing, or remove the line.")
    job, index, label = (str(row[column]) for column in COLUMNS)
    if not (index.isascii() and index.isdigit() and len(index) <= len(str(MAX_INDEX))):
        raise UserError(f"its index is {index!r}, not a whole number from 0.")
    job = job.strip().lower()  # as on the command line
    if job_id not in (None, job):
        raise UserError(f"it belongs to job {job}, not to {job_id}: remove it, or leave out JOB.")
    return CorrectionRequest(job, int(index), label, line, confirms)
