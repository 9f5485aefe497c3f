"""`labelmill correct`: store the true label of an image."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from jobs.errors import UserError
from jobs.ledger.learning.corrections import Correction
from jobs.models.model import name_classes
from labelmill.client import Client
from labelmill.commands.connection import open_client
from labelmill.console.tables import Column, print_rows, short_time
from labelmill.console.terminal import examples, pluralize, print_json, report_errors, say
from producer.export import printable

if TYPE_CHECKING:
    from labelmill.client.remote import RemoteClient

app = typer.Typer(add_completion=False)

#: Files with these endings hold one JSON object per line; all others are CSV.
_JSON_LINES: Final = (".jsonl", ".ndjson")

_COLUMNS: Final = (
    Column("job", attrgetter("job_id")),
    Column("index", lambda correction: f"{correction.index}", right=True),
    Column("label", attrgetter("label"), min_width=10),
    Column("predicted", lambda correction: correction.predicted or "-", min_width=10),
    Column("model", attrgetter("model_id"), leave_out=2),
    Column("corrected (UTC)", lambda correction: short_time(correction.created_at), leave_out=1),
    Column("name", attrgetter("name"), min_width=10),
)

_USAGE: Final = (
    "Give JOB INDEX LABEL, JOB INDEX --undo, [JOB] --from FILE, [JOB] --undo --from FILE, or --list."
)


@app.command(
    epilog=examples(
        "labelmill correct 06h0w9bn8nhmhrcd 17 7",
        "labelmill correct 06h0w9bn8nhmhrcd 17 --undo",
        "labelmill correct --from corrections.csv",
        "labelmill correct 06h0w9bn8nhmhrcd --from predictions.csv",
        "labelmill correct 06h0w9bn8nhmhrcd --undo --from predictions.csv",
        "labelmill correct --list --json",
    )
)
@report_errors
def correct(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="The job's id.")] = None,
    index: Annotated[int | None, typer.Argument(metavar="INDEX", help="The image's index, from 0.")] = None,
    label: Annotated[str | None, typer.Argument(metavar="LABEL", help="The true label.")] = None,
    undo: Annotated[
        bool,
        typer.Option("--undo", help="Remove the correction of this image, or those of --from FILE."),
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A file of corrections: CSV with the columns job, index (or custom_id) and label, or JSON "
            "lines if its name ends in .jsonl or .ndjson; - is CSV on stdin. With JOB, all rows are of that "
            "job, and the column job is not needed.",
        ),
    ] = None,
    confirm_unchanged: Annotated[
        bool,
        typer.Option(
            "--confirm-unchanged",
            help="Also store the rows of --from whose label is the predicted one, which they confirm.",
        ),
    ] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List all corrections, latest first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the corrections as JSON.")] = False,
) -> None:
    """Store the true label of an image. The next training run learns from it.

    The label must be a class of the job's model; the predicted label confirms the prediction. A second
    correction replaces the first. A copy of the image is kept in the store, so it outlives its job. Images
    cannot be corrected if their job was purged, or if their error is `quarantined`, `timeout`,
    `unidentified`, `format_not_allowed` or `corrupt`.

    All rows of a file are stored, or none if one is wrong: each wrong row is reported with its line number.
    Rows with an empty label are skipped and counted on stderr. So are unchanged rows, whose label is the
    predicted one or that of the image's correction: you can edit an export of `labelmill predictions` and
    give the whole file. If a file has the column predicted, as those of `labelmill review`, a person has
    given its labels, and all are stored.

    --undo removes the correction and the copy. If the store cannot be reached, the exit code is 1, and
    `labelmill purge` removes the copy later. With --from, it takes back what the same command without --undo
    stored: corrections that have a different label by now stay.
    """
    with open_client() as client:
        is_one = not list_all and source is None and undo == (label is None)
        if confirm_unchanged and source is None:
            raise UserError("--confirm-unchanged needs --from FILE.")
        if job is not None and index is not None and is_one:
            _correct_one(client, client.job_id(job), index, label, as_json=as_json)
        elif index is not None or list_all == (source is not None) or (list_all and (undo or job)):
            raise UserError(_USAGE)
        elif source is not None:
            job = client.job_id(job) if job is not None else None
            with _lines(source) as lines:
                is_jsonl = source.suffix.lower() in _JSON_LINES
                if undo:
                    changed = client.undo_from(
                        lines, jsonl=is_jsonl, job_id=job, confirm_unchanged=confirm_unchanged
                    )
                    say(f"{pluralize(len(changed), 'correction')} removed")
                else:
                    changed = _correct_from(client, lines, is_jsonl, job, confirm_unchanged)
            if as_json:
                print_json(changed)
        else:
            print_rows(_COLUMNS, client.corrections(), as_json=as_json)


def _correct_one(
    client: Client | RemoteClient, job: str, index: int, label: str | None, *, as_json: bool
) -> None:
    if label is None:
        found = client.undo_correction(job, index)
        say(f"image {index} of job {job} ({printable(found.name)}) has no correction now")
    else:
        found = client.correct(job, index, label)
        prediction = _describe_prediction(found)
        say(f"image {index} of job {job} ({printable(found.name)}) is {label}; {prediction}")
        _report_skipped(client, [found])
    if as_json:
        print_json(found)


def _describe_prediction(correction: Correction) -> str:
    if correction.predicted is None:
        return "its prediction was an error"
    if correction.predicted == correction.label:
        return "the prediction is confirmed"
    return f"the prediction was {correction.predicted}"


def _correct_from(
    client: Client | RemoteClient, lines: Iterable[str], jsonl: bool, job: str | None, confirm: bool
) -> list[Correction]:
    unchanged: list[int] = []
    stored = client.correct_from(
        lines,
        jsonl=jsonl,
        job_id=job,
        confirm_unchanged=confirm,
        on_skip=_report_unlabelled,
        on_unchanged=unchanged.append,
    )
    if any(unchanged):
        ignored = f"{sum(unchanged):,} unchanged: ignored"
        say(f"{len(stored):,} changed, {ignored} (--confirm-unchanged confirms predictions)")
    say(f"{pluralize(len(stored), 'correction')} stored")
    _report_skipped(client, stored)
    return stored


def _report_unlabelled(rows: int) -> None:
    """Print how many rows of a file are no corrections."""
    if rows:
        say(f"skipped {pluralize(rows, 'row')} without a label")


def _report_skipped(client: Client | RemoteClient, stored: list[Correction]) -> None:
    """Print how many corrections the next training run will skip, if its data has the same classes.

    The HTTP API does not say.
    """
    if not isinstance(client, Client):
        return
    datasets = {model.id: model.dataset for model in client.models()}
    for dataset in sorted({datasets[each.model_id] for each in stored}):
        learnt = client.classes_learnt(dataset=dataset)
        if learnt is None:
            continue
        theirs = [each for each in stored if datasets[each.model_id] == dataset]
        count = sum(each.label not in learnt for each in theirs)
        if count:
            several = f"{count:,} of them: their labels are not classes"
            what = "it: its label is not a class" if len(stored) == 1 else several
            say(f"  the next training run on {dataset} skips {what} of the training data")
            say(f"  ({name_classes(learnt)}), unless the data changes")
            say("  (`labelmill models health MODEL` counts it if the image had a label)")


@contextmanager
def _lines(source: Path) -> Iterator[Iterable[str]]:
    """Open a file, or stdin for -. Raises UserError if it cannot be read or is not UTF-8."""
    try:
        with nullcontext(_stdin()) if str(source) == "-" else _opened(source) as lines:
            yield lines
    except UnicodeDecodeError:
        raise UserError(f"{source} is not UTF-8: save it as UTF-8.") from None


def _opened(source: Path) -> TextIO:
    try:
        return source.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UserError(
            f"{source} cannot be read ({error.strerror}): check the path and its permissions."
        ) from None


def _stdin() -> Iterator[str]:
    """Yield the lines on stdin without a byte order mark. Raises UserError if stdin is closed."""
    if sys.stdin is None:
        raise UserError("stdin is closed: name a file with --from.")
    for number, line in enumerate(sys.stdin):
        yield line if number else line.removeprefix("\ufeff")
