"""Add what operators watch: the problem of a worker, and the free space of disks.

Processes of the previous version can go on.

Revision ID: 0020
Revises: 0019
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

# The types when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("workers", sa.Column("problem", sa.Text(), nullable=True))
    op.create_table(
        "disks",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_disks"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("disks")
    op.drop_column("workers", "problem")
