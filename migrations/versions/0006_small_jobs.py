"""The index for gathering small jobs.

Workers of the version before go on beside it: they gather none.

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
    """Makes the index. Workers wait meanwhile: a second for each million chunks there ever were."""
    op.create_index(
        "ix_chunks_fresh_small",
        "chunks",
        ["created_at"],
        postgresql_where=FRESH_AND_SMALL,
        sqlite_where=FRESH_AND_SMALL,
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_index("ix_chunks_fresh_small", "chunks")
