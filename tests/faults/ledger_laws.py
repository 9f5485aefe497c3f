"""What is true of every ledger at every moment, asked of the tables themselves.

Each law is a query in plain SQL that finds what breaks it. None of it knows what was done to the ledger: that
is `ledger_model`'s part.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

#: A law, and the query that finds the id of what breaks it.
LAWS: Final = {
    "an image has one outcome at the most": """
        SELECT job_id AS id FROM predictions GROUP BY job_id, "index" HAVING count(*) > 1""",
    "an outcome belongs to a chunk that is done": """
        SELECT p.job_id AS id FROM predictions p WHERE NOT EXISTS (
            SELECT 1 FROM chunks c WHERE c.job_id = p.job_id AND c.state = 'done'
            AND c.first_index <= p."index" AND p."index" < c.first_index + c.images)""",
    "each image of a chunk that is done has its outcome": """
        SELECT c.id FROM chunks c WHERE c.state = 'done' AND c.images <> (
            SELECT count(*) FROM predictions p WHERE p.job_id = c.job_id
            AND c.first_index <= p."index" AND p."index" < c.first_index + c.images)""",
    "the counters of a job are its outcomes, counted": """
        SELECT j.id FROM jobs j
        WHERE j.succeeded <> (SELECT count(*) FROM predictions p WHERE p.job_id = j.id AND p.error IS NULL)
        OR j.failed <> (SELECT count(*) FROM predictions p WHERE p.job_id = j.id AND p.error IS NOT NULL)""",
    "a job counts its images": """
        SELECT j.id FROM jobs j
        WHERE j.total <> (SELECT coalesce(sum(c.images), 0) FROM chunks c WHERE c.job_id = j.id)""",
    "the chunks of a job lie side by side, without a gap or a place that two have": """
        SELECT c.id FROM chunks c WHERE c.first_index <> (
            SELECT coalesce(sum(b.images), 0) FROM chunks b WHERE b.job_id = c.job_id
            AND b.first_index < c.first_index)""",
    "every release and every crash of a chunk was an attempt": """
        SELECT c.id FROM chunks c WHERE c.attempts < c.releases + c.crashes
            + CASE WHEN c.state IN ('claimed', 'done') THEN 1 ELSE 0 END""",
    "a claimed chunk has a token, an owner and a lease": """
        SELECT id FROM chunks
        WHERE state = 'claimed' AND (token IS NULL OR owner IS NULL OR lease_until IS NULL)""",
    "a chunk is held where its job is paused and can be resumed": """
        SELECT c.id FROM chunks c JOIN jobs j ON j.id = c.job_id
        WHERE c.state = 'held' AND (j.paused_at IS NULL OR j.state NOT IN ('receiving', 'running'))""",
    "a job is done when all its images have an outcome, and it is sealed": """
        SELECT id FROM jobs WHERE (state = 'done' AND (succeeded + failed <> total OR submitted_at IS NULL))
        OR (state = 'running' AND (succeeded + failed = total OR submitted_at IS NULL))""",
    "a job that has ended says when": """
        SELECT id FROM jobs WHERE (finished_at IS NULL) <> (state IN ('receiving', 'running'))""",
    # No equations: what is taken back or purged stays counted.
    "what was recorded was counted": """
        SELECT 'images' AS id WHERE (SELECT count(*) FROM predictions) > (
            SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'images')
        UNION ALL SELECT c.state FROM chunks c WHERE c.state = 'done' GROUP BY c.state
        HAVING count(*) > (
            SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'attempts' AND label = c.state)
        UNION ALL SELECT j.state FROM jobs j WHERE j.state IN ('done', 'failed', 'cancelled') GROUP BY j.state
        HAVING count(*) > (
            SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'jobs' AND label = j.state)""",
    "a label comes from the model that the job is pinned to": """
        SELECT p.job_id AS id FROM predictions p JOIN jobs j ON j.id = p.job_id
        WHERE p.label IS NOT NULL AND p.label <> j.model_id""",
    "there is one champion, and it is a model": """
        SELECT 'champion' AS id WHERE 1 <> (
            SELECT count(*) FROM aliases a JOIN models m ON m.id = a.model_id WHERE a.name = 'champion')""",
}


#: One statement asks them all: a step of the machine takes milliseconds.
_ALL: Final = sa.text(
    " UNION ALL ".join(f"SELECT '{law}', found.id FROM ({query}) AS found" for law, query in LAWS.items())
)


def broken_laws(connection: Connection) -> list[tuple[str, str]]:
    """The laws that do not hold, each with the chunk's or job's id that breaks it."""
    return [(law, id_) for law, id_ in connection.execute(_ALL)]
