"""`python -m benchmarks.paging`: time a page of predictions, and the status, of a job of ten million.

The rows are made by PostgreSQL itself. What is measured is what `labelmill predictions --after --limit` and
`labelmill status` call, on a connection that is open, and the same page over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Final

import typer

from benchmarks.harness.made_jobs import PAGE, check_page, make_finished_job, vacuum
from benchmarks.harness.report import RESULTS, milliseconds, say_milliseconds, seconds_of, write_result
from benchmarks.harness.served import Api, ServedPipeline
from benchmarks.harness.setup import Json, WorkDir, prepare, run
from labelmill.client import Client
from labelmill.console.terminal import say

#: Where a page begins, as a share of the rows.
_DEPTHS: Final = (0.0, 0.1, 0.5, 0.999)


def main(
    rows: Annotated[int, typer.Option(min=1_000, help="Predictions of the job.")] = 10_000_000,
    repeats: Annotated[int, typer.Option(min=2, help="How often each is asked.")] = 200,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time a page at several depths, and a status, in one large job on PostgreSQL."""
    with prepare(work_dir, images=1) as setup, ServedPipeline(setup, worker=False) as pipeline:
        client = pipeline.client
        say(f"writing {rows:,} rows")
        job_id = make_finished_job(client, client.model().id, rows)
        vacuum(client)
        setup.settle()
        with pipeline.connect() as api:
            questions: dict[str, Callable[[], object]] = {"status": partial(client.status, job_id)}
            for begin in [min(int(rows * share), rows - PAGE) for share in _DEPTHS]:
                questions[f"page at {begin:,}"] = partial(_read_page, client, job_id, begin)
                questions[f"HTTP: page at {begin:,}"] = partial(_fetch_page, api, job_id, begin)
            taken: dict[str, list[float]] = {name: [] for name in questions}
            for _ in range(repeats):
                for name, question in questions.items():  # in turns: the machine may be busier later
                    taken[name].append(seconds_of(question))
    found = {name: milliseconds(seconds) for name, seconds in taken.items()}
    for name, figures in found.items():
        say_milliseconds(name, figures)
    facts = {"rows": rows, "page": PAGE, "repeats": repeats, "database": setup.databases.facts}
    write_result("paging", facts | {"milliseconds": found}, json)


def _read_page(client: Client, job_id: str, begin: int) -> None:
    page = client.predictions(job_id, after=begin - 1, limit=PAGE)
    check_page([one.index for one in page], begin)


def _fetch_page(api: Api, job_id: str, begin: int) -> None:
    page = api.get(f"/batches/{job_id}/results?after={begin - 1}&limit={PAGE}")
    check_page([one["index"] for one in page], begin)


if __name__ == "__main__":
    run(main)
