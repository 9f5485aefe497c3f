"""Record whether the champion is pinned: no training run replaces it.

Trainers of the previous version do not know pins: pin only when all of them are new.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# The type when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")


def upgrade() -> None:
    """Add the column. No champion is pinned."""
    op.add_column("aliases", sa.Column("pinned_at", MOMENT))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("aliases", "pinned_at")
