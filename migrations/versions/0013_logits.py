"""Record which models answer logits.

Workers of the previous version can go on, but refuse the answers of such a model: promote one only when all
workers are new.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. All earlier models answer probabilities."""
    op.add_column("models", sa.Column("logits", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("models", "logits")
