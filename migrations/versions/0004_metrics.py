"""Add counters, the workers' heartbeats and an index, for metrics and health checks.

Workers of the previous version can go on, but their work is not counted.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The types when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

OPEN_JOBS = sa.text("state IN ('receiving', 'running')")


def upgrade() -> None:
    """Create the tables and the index."""
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "shard", name="pk_counters"),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("processes", sa.Integer(), nullable=False),
        sa.Column("children", DOCUMENT, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
    op.create_index("ix_jobs_open", "jobs", ["state"], postgresql_where=OPEN_JOBS, sqlite_where=OPEN_JOBS)


def downgrade() -> None:
    """Drop the tables, with all counters, and the index."""
    op.drop_index("ix_jobs_open", "jobs")
    op.drop_table("workers")
    op.drop_table("counters")
