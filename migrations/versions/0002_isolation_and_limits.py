"""What isolating a bad image, pausing, error limits, retrying and purging need.

Columns are only added, each with a default or empty: workers of the version before go on beside it.

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

# The type as it was when this migration was written: jobs/schema.py moves on, a migration does not.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")


def upgrade() -> None:
    """Adds the columns. None of them makes either database rewrite a table."""
    # Chunks first, as workers lock them: the other way round each waits for the other, and the migration is
    # the one that is given up.
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
    """Drops the columns. No chunk may be held or split by then: the version before knows neither."""
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
