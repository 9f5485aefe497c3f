"""Add priorities and back-off, so that the ledger decides which chunk is next.

Stop the workers and producers of the previous version, because they write columns that this one drops.
Nothing is lost: their claims expire, and their messages wake up workers of this version. A challenger's
comparisons start again.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

PENDING = sa.text("state = 'pending'")
CLAIMED = sa.text("state = 'claimed'")
SHADOW = sa.text("shadow_of IS NOT NULL")
OPEN = sa.text("state IN ('pending', 'claimed')")
FRESH_AND_SMALL = sa.text(
    "attempts = 0 AND finished_at IS NULL AND state <> 'held' AND first_index = 0 AND images <= 64"
)
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
SMALL_JOB_PRIORITY = 10


def upgrade() -> None:
    """Change the columns and indexes, in about a second per million chunks in the ledger."""
    op.drop_index("ix_chunks_open", "chunks")
    op.drop_index("ix_chunks_fresh_small", "chunks")
    op.add_column("chunks", sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chunks", sa.Column("not_before", MOMENT))
    op.execute(
        f"UPDATE chunks SET priority = {SMALL_JOB_PRIORITY} "  # noqa: S608 -- a constant
        "WHERE state IN ('pending', 'held', 'claimed') AND images <= 64 AND first_index = 0 "
        "AND (SELECT chunks = 1 FROM jobs WHERE jobs.id = chunks.job_id)"
    )
    # Each split chunk was replaced by two others.
    op.execute("DELETE FROM chunks WHERE state = 'split'")
    for column in ("rung_at", "ring_after"):
        op.drop_column("chunks", column)
    op.drop_column("training_runs", "ring_after")
    op.create_index(
        "ix_chunks_due",
        "chunks",
        [sa.text("priority DESC"), "created_at", "first_index"],
        postgresql_where=PENDING,
        sqlite_where=PENDING,
    )
    op.create_index(
        "ix_chunks_claimed", "chunks", ["lease_until"], postgresql_where=CLAIMED, sqlite_where=CLAIMED
    )
    op.add_column("jobs", sa.Column("shadow_of", sa.String(16)))
    op.create_index(
        "ux_jobs_shadow_of_model_id",
        "jobs",
        ["shadow_of", "model_id"],
        unique=True,
        postgresql_where=SHADOW,
        sqlite_where=SHADOW,
    )
    for column in ("chunks", "chunks_done"):
        op.drop_column("jobs", column)
    op.drop_table("disagreements")
    op.drop_table("shadowed_chunks")


def downgrade() -> None:
    """Restore the columns, indexes and tables. The challengers' predictions are lost."""
    op.create_table(
        "shadowed_chunks",
        sa.Column("chunk_id", sa.String(16), primary_key=True),
        sa.Column("model_id", sa.String(16), sa.ForeignKey("models.id"), primary_key=True, index=True),
        sa.Column(
            "job_id", sa.String(16), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("job_model_id", sa.String(16), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("disagreements", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
    )
    op.create_table(
        "disagreements",
        sa.Column("job_id", sa.String(16), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("index", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("model_id", sa.String(16), sa.ForeignKey("models.id"), primary_key=True),
        sa.Column("label", sa.Text()),
        sa.Column("confidence", sa.REAL()),
    )
    op.create_index(
        "ix_disagreements_model_id_job_id_index", "disagreements", ["model_id", "job_id", "index"]
    )
    op.execute("DELETE FROM predictions WHERE job_id IN (SELECT id FROM jobs WHERE shadow_of IS NOT NULL)")
    op.execute("DELETE FROM chunks WHERE job_id IN (SELECT id FROM jobs WHERE shadow_of IS NOT NULL)")
    op.execute("DELETE FROM jobs WHERE shadow_of IS NOT NULL")
    op.drop_index("ux_jobs_shadow_of_model_id", "jobs")
    op.drop_column("jobs", "shadow_of")
    for column, state in (("chunks", ""), ("chunks_done", " AND state = 'done'")):
        op.add_column("jobs", sa.Column(column, sa.Integer(), server_default="0", nullable=False))
        op.execute(
            f"UPDATE jobs SET {column} = "  # noqa: S608 -- constants
            f"(SELECT count(*) FROM chunks WHERE chunks.job_id = jobs.id{state})"
        )
    op.drop_index("ix_chunks_claimed", "chunks")
    op.drop_index("ix_chunks_due", "chunks")
    op.add_column("training_runs", sa.Column("ring_after", MOMENT))
    for column in ("rung_at", "ring_after"):
        op.add_column("chunks", sa.Column(column, MOMENT))
    for column in ("priority", "not_before"):
        op.drop_column("chunks", column)
    op.create_index(
        "ix_chunks_open", "chunks", ["state", "created_at"], postgresql_where=OPEN, sqlite_where=OPEN
    )
    op.create_index(
        "ix_chunks_fresh_small",
        "chunks",
        ["created_at"],
        postgresql_where=FRESH_AND_SMALL,
        sqlite_where=FRESH_AND_SMALL,
    )
