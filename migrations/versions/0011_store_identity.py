"""Record which object store holds the ledger's files.

Workers and producers of the previous version can go on: they do not use the table.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# The type when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")


def upgrade() -> None:
    """Create the table. It stays empty until a store is used."""
    op.create_table(
        "store_identity",
        sa.Column("one", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("recorded_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("one", name="pk_store_identity"),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("store_identity")
