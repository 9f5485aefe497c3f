"""Replace `state = 'pending'` in the condition of the index for small jobs by an equivalent.

Workers of the previous version can go on: they find small jobs by the index of all open chunks, which is
slower if very many chunks wait.

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
    """Recreate the index. Workers wait meanwhile, about a second per million chunks in the ledger."""
    _make_anew(FRESH_AND_SMALL)


def downgrade() -> None:
    """Recreate the index with its previous condition."""
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
