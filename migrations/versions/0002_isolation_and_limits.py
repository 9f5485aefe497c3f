"""Add columns for isolating bad images, pausing, error limits, retrying and purging.

The columns have a default or are nullable, so workers of the previous version can go on.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The type when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")


def upgrade() -> None:
    """Add the columns. Neither database has to rewrite a table."""
    # Chunks first, because workers lock them first: another order could deadlock, and fail the migration.
    op.add_column("chunks", sa.Column("payload_offset", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chunks", sa.Column("releases", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chunks", sa.Column("crashes", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chunks", sa.Column("crash_code", sa.String(length=32), nullable=True))
    op.add_column("chunks", sa.Column("ring_after", MOMENT, nullable=True))
    op.add_column("jobs", sa.Column("error_limit", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("error_rate_limit", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("error_rate_sample", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("retry_of", sa.String(length=16), nullable=True))
    op.add_column("jobs", sa.Column("paused_at", MOMENT, nullable=True))
    op.add_column("jobs", sa.Column("purged_at", MOMENT, nullable=True))


def downgrade() -> None:
    """Drop the columns. No chunk may be held or split, because the previous version knows neither state."""
    for column in ("ring_after", "crash_code", "crashes", "releases", "payload_offset"):
        op.drop_column("chunks", column)
    for column in (
        "purged_at",
        "paused_at",
        "retry_of",
        "error_rate_sample",
        "error_rate_limit",
        "error_limit",
    ):
        op.drop_column("jobs", column)
