"""Add the view `results`, for people who query the ledger's predictions by SQL.

Workers of the previous version can go on.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

VIEW = """
CREATE VIEW results AS
SELECT predictions.job_id AS job, jobs.key, predictions.name, predictions.label, predictions.confidence,
    predictions.error, jobs.model_id AS model, jobs.finished_at
FROM predictions JOIN jobs ON jobs.id = predictions.job_id
WHERE jobs.shadow_of IS NULL
"""


def upgrade() -> None:
    """Create the view, and an index to find the latest jobs."""
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    op.execute(VIEW)


def downgrade() -> None:
    """Drop the view and the index."""
    op.execute("DROP VIEW results")
    op.drop_index("ix_jobs_finished_at", "jobs")
