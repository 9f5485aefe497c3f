"""Give each dataset its own versions, champion, training runs and schedule; pin champions, and mark logits.

What exists belongs to `mnist`. Stop the trainers of the previous version first: they cannot move the champion
any more, and do not know pins. Its workers and producers can go on until another dataset has a champion, or a
model that answers logits is promoted.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# The types when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
NAME = sa.String(64)


def upgrade() -> None:
    """Add the columns and create the tables."""
    for table in ("models", "aliases", "evaluations", "training_runs"):
        op.add_column(table, sa.Column("dataset", NAME, nullable=False, server_default="mnist"))
    for table in ("evaluations", "training_runs"):
        op.add_column(table, sa.Column("dataset_version", sa.Integer(), nullable=True))
    op.add_column("models", sa.Column("logits", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("aliases", sa.Column("pinned_at", MOMENT, nullable=True))
    op.add_column("training_runs", sa.Column("corrections_seen", sa.BigInteger(), nullable=True))
    _replace_key(["dataset", "name"])
    op.drop_index("ux_training_runs_active", "training_runs")
    op.drop_index("ux_training_runs_slot", "training_runs")
    for column in ("active", "slot", "corrections_seen"):
        op.create_index(f"ux_training_runs_{column}", "training_runs", ["dataset", column], unique=True)
    op.create_table(
        "dataset_versions",
        sa.Column("dataset", NAME, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("classes", DOCUMENT, nullable=False),
        sa.Column("summary", DOCUMENT, nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("by_reference", sa.Boolean(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("dataset", "version", name="pk_dataset_versions"),
    )
    op.create_table(
        "schedules",
        sa.Column("dataset", NAME, nullable=False),
        sa.Column("cron", sa.Text(), nullable=True),
        sa.Column("after_corrections", sa.Integer(), nullable=True),
        sa.Column("request", DOCUMENT, nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("dataset", name="pk_schedules"),
    )


def downgrade() -> None:
    """Drop the tables and the columns. Only `mnist` may have a champion and an active run."""
    op.drop_table("schedules")
    op.drop_table("dataset_versions")
    for column in ("active", "slot", "corrections_seen"):
        op.drop_index(f"ux_training_runs_{column}", "training_runs")
    for column in ("active", "slot"):
        op.create_index(f"ux_training_runs_{column}", "training_runs", [column], unique=True)
    _replace_key(["name"])
    op.drop_column("training_runs", "corrections_seen")
    op.drop_column("aliases", "pinned_at")
    op.drop_column("models", "logits")
    for table in ("evaluations", "training_runs"):
        op.drop_column(table, "dataset_version")
    for table in ("models", "aliases", "evaluations", "training_runs"):
        op.drop_column(table, "dataset")


def _replace_key(columns: list[str]) -> None:
    """Replace the primary key of `aliases`. SQLite copies the table for it."""
    with op.batch_alter_table("aliases") as batch:
        batch.drop_constraint("pk_aliases", type_="primary")
        batch.create_primary_key("pk_aliases", columns)
