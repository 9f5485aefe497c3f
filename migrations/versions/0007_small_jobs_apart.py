"""The index for gathering small jobs no longer says that a chunk is pending, but what that comes to.

Workers of the version before go on beside it: they find small jobs by the index of all open chunks, which is
slower where very much waits.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BEFORE = sa.text("state = 'pending' AND attempts = 0 AND first_index = 0 AND images <= 64")
FRESH_AND_SMALL = sa.text(
    "attempts = 0 AND finished_at IS NULL AND state <> 'held' AND first_index = 0 AND images <= 64"
)


def upgrade() -> None:
    """Makes the index anew. Workers wait meanwhile: a second for each million chunks there ever were."""
    _make_anew(FRESH_AND_SMALL)


def downgrade() -> None:
    """Makes it as it was."""
    _make_anew(BEFORE)


def _make_anew(condition: sa.TextClause) -> None:
    op.drop_index("ix_chunks_fresh_small", "chunks")
    op.create_index(
        "ix_chunks_fresh_small",
        "chunks",
        ["created_at"],
        postgresql_where=condition,
        sqlite_where=condition,
    )
