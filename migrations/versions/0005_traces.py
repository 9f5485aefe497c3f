"""Add the trace that a job belongs to.

The column is nullable, so workers of the previous version can go on.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Neither database has to rewrite the table."""
    op.add_column("jobs", sa.Column("traceparent", sa.String(length=55), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("jobs", "traceparent")
