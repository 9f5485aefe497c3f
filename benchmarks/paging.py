"""`python -m benchmarks.paging`: time a page of predictions, and the status, of a job of ten million.

The rows are made by PostgreSQL itself. What is measured is what `labelmill predictions --after --limit` and
`labelmill status` call, on a connection that is open.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import Annotated, Any, Final

import sqlalchemy as sa
import typer

from benchmarks.databases import Work, databases
from benchmarks.large_job import make_large_job
from benchmarks.model import TrainedModel, make_champion
from benchmarks.report import milliseconds, seconds_of, write_measured
from benchmarks.setup import RESULTS, Json, WorkDir, prepare, run, settings_in, settle, short_folder
from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.jobs.queries import Filter, page_of_predictions
from jobs.schema import predictions
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console.terminal import report_errors, say

PAGE: Final = 100

#: Where a page begins, as a share of the rows.
_DEPTHS: Final = (0.0, 0.1, 0.5, 0.999)

#: PostgreSQL's names for reading an index in order.
_INDEX_SCANS: Final = frozenset(("Index Scan", "Index Only Scan"))


class NoIndexScan(LabelmillError):
    """PostgreSQL does not read the page by the primary key."""


@report_errors
def main(
    rows: Annotated[int, typer.Option(min=1_000, help="Predictions of the job.")] = 10_000_000,
    repeats: Annotated[int, typer.Option(min=2, help="How often each is asked.")] = 200,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Time a page at several depths, and a status, in one large job on PostgreSQL."""
    load_average = os.getloadavg()[0]
    model, _ = prepare(work_dir, images=1)
    with short_folder() as home, databases(Work.POSTGRESQL, home) as both:
        settings = settings_in(home, both.pipeline, 1)
        with Client(settings) as client:
            job_id = _fill(client.ledger, model, settings, rows)
            before_analyze = _plan(client.ledger, job_id, rows // 2)
            settle(both.settle)
            with client.ledger.transaction() as connection:
                connection.execute(sa.text("ANALYZE"))  # which autovacuum would do by and by
            plan = _plan(client.ledger, job_id, rows // 2)
            _check_index_scan(plan)
            found = _measure(client, job_id, rows, repeats)
    for name, figures in found.items():
        say(f"{name}: median {figures['median']:.2f} ms, 99th percentile {figures['p99']:.2f} ms")
    measured = {
        "rows": rows,
        "page": PAGE,
        "repeats": repeats,
        "milliseconds": found,
        "plan": plan,
        "plan_before_analyze": before_analyze,
        "database": both.facts,
    }
    say(f"written to {write_measured('paging', measured, json, load_average)}")


def _fill(ledger: Ledger, model: TrainedModel, settings: Settings, images: int) -> str:
    """Make a finished job with all its rows, and return its id."""
    champion = make_champion(model, ledger, settings)
    say(f"writing {images:,} rows")
    began = time.perf_counter()
    with ledger.transaction() as connection:
        job_id = make_large_job(connection, champion.id, images, chunk_images=settings.chunk_images)
    say(f"written in {time.perf_counter() - began:.0f} s")
    return job_id


def _measure(client: Client, job_id: str, rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return each query's milliseconds. They take turns, so that none has a quieter machine than another."""
    begins = [min(int(rows * share), rows - PAGE) for share in _DEPTHS]
    depths = {f"page at {begin:,}": begin for begin in begins}
    taken: dict[str, list[float]] = {name: [] for name in (*depths, "status")}
    for _ in range(repeats):
        for name, depth in depths.items():
            taken[name].append(seconds_of(partial(_read_page, client, job_id, depth)))
        taken["status"].append(seconds_of(partial(client.status, job_id)))
    return {name: milliseconds(seconds) for name, seconds in taken.items()}


def _read_page(client: Client, job_id: str, depth: int) -> None:
    page = list(client.predictions(job_id, after=depth - 1, limit=PAGE))
    if [one.index for one in page] != list(range(depth, depth + PAGE)):
        raise LabelmillError(f"The page at {depth:,} does not hold what it should.")


def _plan(ledger: Ledger, job_id: str, depth: int) -> dict[str, Any]:
    """Return how PostgreSQL reads a page: the steps of the statement that the library sends."""
    sent: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    sa.event.listen(ledger.engine, "before_cursor_execute", listen)
    with contextlib.ExitStack() as stack:
        stack.callback(sa.event.remove, ledger.engine, "before_cursor_execute", listen)
        connection = stack.enter_context(ledger.reading())
        page_of_predictions(connection, job_id, Filter(), after=depth - 1, limit=PAGE)
        [(statement, parameters)] = sent
        plan: dict[str, Any] = connection.exec_driver_sql(
            f"EXPLAIN (FORMAT JSON) {statement}", parameters
        ).scalar_one()[0]["Plan"]
    steps = _steps(plan)
    [reading] = [step for step in steps if step.get("Relation Name", "").startswith(predictions.name)]
    return {
        "steps": [step["Node Type"] for step in steps],
        "reads_by": reading["Node Type"],
        "index": reading.get("Index Name"),
        "condition": reading.get("Index Cond"),
    }


def _check_index_scan(plan: dict[str, Any]) -> None:
    """Check that a page is read by the primary key. Raises NoIndexScan."""
    if plan["reads_by"] not in _INDEX_SCANS or "Sort" in plan["steps"]:
        raise NoIndexScan(f"PostgreSQL reads a page by {', '.join(plan['steps'])}.")


def _steps(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(step for part in plan.get("Plans", []) for step in _steps(part))]


if __name__ == "__main__":
    run(main)
