"""Add the index for claiming several small jobs together.

Workers of the previous version can go on: they claim small jobs one by one.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

FRESH_AND_SMALL = sa.text("state = 'pending' AND attempts = 0 AND first_index = 0 AND images <= 64")


def upgrade() -> None:
    """Create the index. Workers wait meanwhile, about a second per million chunks in the ledger."""
    op.create_index(
        "ix_chunks_fresh_small",
        "chunks",
        ["created_at"],
        postgresql_where=FRESH_AND_SMALL,
        sqlite_where=FRESH_AND_SMALL,
    )


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_chunks_fresh_small", "chunks")
