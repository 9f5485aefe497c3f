"""Add what operators watch: a worker's problems, the free space of disks, and what was purged.

Processes of the previous version keep working.

Revision ID: 0020
Revises: 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

# The types when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Add the column and the tables."""
    op.add_column("workers", sa.Column("problem", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("model_problem", sa.Text(), nullable=True))
    op.create_table(
        "disks",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_disks"),
    )
    op.create_table(
        "purges",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("options", DOCUMENT, nullable=False),
        sa.Column("removed", DOCUMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_purges"),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("purges", "disks"):
        op.drop_table(table)
    op.drop_column("workers", "model_problem")
    op.drop_column("workers", "problem")
