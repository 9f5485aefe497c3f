"""Distinguish evaluations on the test set from those on held-out corrections.

Trainers of the previous version can go on: they write evaluations on test sets only.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("evaluations", sa.Column("part", sa.String(8), nullable=False, server_default="test"))


def downgrade() -> None:
    """Drop the column, and the evaluations that the previous version would take for others."""
    op.execute("DELETE FROM evaluations WHERE part <> 'test'")
    op.drop_column("evaluations", "part")
