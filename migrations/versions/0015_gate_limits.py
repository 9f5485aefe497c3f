"""Give each dataset its own limits of the promotion gate.

Trainers of the previous version can go on: they judge by the settings alone.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# The types when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "gate_limits",
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("limits", DOCUMENT, nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("dataset", name="pk_gate_limits"),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("gate_limits")
