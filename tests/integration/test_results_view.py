"""Test the view `results`, and that every query in docs/reference/sql.md returns the rows shown there."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.outcomes import Alternative
from jobs.schema import JobState, UtcTime, jobs, predictions
from tests.outcomes import best

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sql.md"

#: Begins a block that is only for PostgreSQL.
ONLY_POSTGRESQL = "-- PostgreSQL only"

JOBS, IMAGES = 200, 500

ALTERNATIVES = predictions.c.alternatives.type

#: Gives every job that many images, on either database.
FILL = """
INSERT INTO predictions (job_id, "index", name, label, confidence)
SELECT jobs.id, n, n || '.png', '7', 0.75 FROM jobs, (
    WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :images)
    SELECT n FROM numbers
) AS all_numbers
"""


class Image(NamedTuple):
    """One row of a job: a label with its confidence, or an error code."""

    name: str
    label: str | None
    confidence: float | None
    error: str | None = None
    alternatives: list[Alternative] | None = None


def add_job(
    connection: Connection,
    model_id: str,
    key: str | None,
    finished_at: datetime | None,
    images: list[Image],
    shadow_of: str | None = None,
) -> str:
    job_id = new_id()
    now = datetime.now(UTC)
    state = JobState.RUNNING if finished_at is None else JobState.DONE
    connection.execute(
        jobs.insert().values(
            id=job_id,
            key=key,
            state=state,
            model_id=model_id,
            created_at=now,
            touched_at=now,
            finished_at=finished_at,
            shadow_of=shadow_of,
        )
    )
    for n, image in enumerate(images):
        given = {name: value for name, value in image._asdict().items() if value is not None}
        connection.execute(predictions.insert().values(job_id=job_id, index=n, **given))
    return job_id


def at(day: int, hour: int, minute: int) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


# ---- the view -----------------------------------------------------------------------------------------


def test_a_prediction_has_its_jobs_key_model_and_end(ledger, champion):
    # Given a finished job with a shadow, and a running job without a key
    image, broken = Image("a.png", "7", 0.75), Image("b.png", None, None, "corrupt")
    more = Image("c.png", "7", 0.75, alternatives=best("7", "1"))
    with ledger.transaction() as connection:
        done = add_job(connection, champion.id, "scans", at(23, 9, 40), [image, broken, more])
        running = add_job(connection, champion.id, None, None, [image])
        add_job(connection, champion.id, None, at(23, 9, 50), [image], shadow_of=done)

    # When the view is read, Then each prediction has a row, except those of the shadow
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.text("SELECT * FROM results").columns(finished_at=UtcTime(), alternatives=ALTERNATIVES)
        ).all()
    assert sorted(map(tuple, rows)) == sorted(
        [
            (done, "scans", "a.png", "7", 0.75, None, champion.id, at(23, 9, 40), None),
            (done, "scans", "b.png", None, None, "corrupt", champion.id, at(23, 9, 40), None),
            (done, "scans", "c.png", "7", 0.75, None, champion.id, at(23, 9, 40), best("7", "1")),
            (running, None, "a.png", "7", 0.75, None, champion.id, None, None),
        ]
    )


@pytest.fixture
def many_results(ledger: Ledger, champion) -> Ledger:
    """Return a ledger with 100,000 predictions of 200 finished jobs."""
    with ledger.transaction() as connection:
        for number in range(JOBS):
            add_job(connection, champion.id, f"scans-{number}", at(1 + number % 28, 9, 0), [])
        connection.execute(sa.text(FILL), {"images": IMAGES})
    if not ledger.is_sqlite:  # autovacuum would do this within a minute
        with ledger.reading() as connection:
            connection.execute(sa.text("ANALYZE"))
    return ledger


#: A scan of a whole partition that has rows. For an empty partition, PostgreSQL expects one row.
SEQ_SCAN = "Seq Scan on predictions.* rows=(?!1 )"


def plan_of(connection: Connection, query: str) -> str:
    """Return the plan that the planner chooses by its statistics."""
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    return "\n".join(map(str, connection.execute(sa.text(f"{explain} {query}"))))


def test_one_jobs_results_are_found_by_the_primary_key(many_results):
    with many_results.reading() as connection:
        job = connection.scalar(sa.text("SELECT min(id) FROM jobs"))
        for condition in (f"job = '{job}'", "key = 'scans-7'", "key IN ('scans-7', 'scans-8')"):
            plan = plan_of(connection, f"SELECT count(label) FROM results WHERE {condition}")
            by_key = re.search(r"Index .* predictions_\w+_pkey|SEARCH predictions USING PRIMARY KEY", plan)
            assert by_key, plan
            assert not re.search(SEQ_SCAN, plan), plan


def test_a_condition_on_the_time_reads_the_jobs_of_that_time(many_results):
    with many_results.reading() as connection:
        plan = plan_of(connection, "SELECT count(*) FROM results WHERE finished_at > '2100-01-01'")
    assert not re.search(f"{SEQ_SCAN}|SCAN predictions", plan), plan


@pytest.mark.parametrize("order", ["finished_at", "job"])
def test_the_latest_results_are_read_in_their_order(many_results, order):
    query = f"SELECT * FROM results WHERE finished_at IS NOT NULL ORDER BY {order} DESC LIMIT 20"
    with many_results.reading() as connection:
        plan = plan_of(connection, query)
    assert not re.search(f"Sort|TEMP B-TREE|{SEQ_SCAN}", plan), plan


# ---- the page -----------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A block of SQL on the page, with the rows of the table below it, if there is one."""

    sql: str
    header: list[str]
    rows: list[list[str]]


def blocks() -> list[Block]:
    found = re.findall(r"^```sql\n((?:.*\n)*?)```\n((?:\n\|.*)*)", PAGE.read_text(), re.MULTILINE)
    return [Block(sql, *cells(table)) for sql, table in found]


def cells(table: str) -> tuple[list[str], list[list[str]]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n") if line]
    return (lines[0], lines[2:]) if lines else ([], [])


def as_shown(value: object, shown: str) -> bool:
    """Tell whether the page shows this value: numbers may be rounded, and NULL is an empty cell."""
    if value is None or shown == "":
        return value is None and shown == ""
    try:
        return float(str(value)) == pytest.approx(float(shown), abs=1e-6)
    except ValueError:
        return str(value) == shown


QUERIES = [block for block in blocks() if not block.sql.startswith(ONLY_POSTGRESQL)]


def top(label: str, first: float, other: str, second: float) -> list[Alternative]:
    return [{"label": label, "confidence": first}, {"label": other, "confidence": second}]


@pytest.fixture
def the_pages_ledger(ledger: Ledger, make_model) -> Ledger:
    """Return the small ledger that the page describes."""
    before, after = make_model(b"before"), make_model(b"after")
    broken = Image("05.png", None, None, "corrupt")
    monday = [("01.png", "7", 0.98), ("02.png", "1", 0.95), ("03.png", "4", 0.52), ("04.png", "9", 0.88)]
    again = [("01.png", "7", 0.99), ("02.png", "1", 0.97), ("03.png", "9", 0.76), ("04.png", "9", 0.90)]
    tuesday = [
        Image(name, label, first, None, top(label, first, other, second))
        for name, label, first, other, second in [
            ("11.png", "2", 0.65, "7", 0.3),
            ("12.png", "0", 0.96, "6", 0.02),
            ("13.png", "0", 0.55, "6", 0.41),
            ("14.png", "6", 0.91, "5", 0.05),
        ]
    ]
    late = [Image("21.png", None, None, "source_missing"), Image("22.png", "5", 0.93)]
    with ledger.transaction() as connection:
        for key, model, end, images in [
            ("monday", before, at(23, 9, 40), [*(Image(*image) for image in monday), broken]),
            ("monday-again", after, at(23, 10, 5), [*(Image(*image) for image in again), broken]),
            ("tuesday", after, at(24, 10, 30), tuesday),
            ("tuesday-late", after, at(24, 10, 50), late),
        ]:
            add_job(connection, model.id, key, end, images)
    return ledger


def test_the_page_has_its_queries():
    assert sum(bool(block.rows) for block in QUERIES) == 6


@pytest.mark.parametrize("block", QUERIES, ids=lambda block: block.sql.splitlines()[0])
def test_a_query_of_the_page_returns_what_the_page_shows(the_pages_ledger, block):
    # When the query runs, in the page's time zone on PostgreSQL
    with the_pages_ledger.transaction() as connection:
        if not the_pages_ledger.is_sqlite:
            connection.execute(sa.text("SET LOCAL TIME ZONE 'UTC'"))
        found = connection.execute(sa.text(block.sql))
        header, rows = list(found.keys()), found.all()

    # Then it returns rows, and they are those of the table below it, if there is one
    assert rows
    if block.header:
        assert header == block.header
        assert len(rows) == len(block.rows)
        for row, shown in zip(rows, block.rows, strict=True):
            assert all(map(as_shown, row, shown)), (row, shown)


def test_the_latest_results_of_the_page_are_those_of_the_last_job(the_pages_ledger):
    [block] = [block for block in QUERIES if not block.rows]
    with the_pages_ledger.reading() as connection:
        assert {row.name for row in connection.execute(sa.text(block.sql))} == {"21.png", "22.png"}


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_the_role_of_the_page_reads_the_view_and_nothing_else(the_pages_ledger):
    [block] = [block for block in blocks() if block.sql.startswith(ONLY_POSTGRESQL)]
    with the_pages_ledger.engine.connect() as connection, connection.begin() as transaction:
        # Given the role, which is rolled back with the transaction
        connection.execute(sa.text(block.sql))
        connection.execute(sa.text("SET LOCAL ROLE analyst"))

        # Then it can read the results, but cannot write or read the tables
        assert connection.scalar(sa.text("SELECT count(*) FROM results")) == 16
        for statement in ("SELECT * FROM predictions", "SELECT * FROM jobs", "DELETE FROM results"):
            with (
                pytest.raises(sa.exc.DBAPIError, match=r"permission denied|cannot delete"),
                connection.begin_nested(),
            ):
                connection.execute(sa.text(statement))
        transaction.rollback()
