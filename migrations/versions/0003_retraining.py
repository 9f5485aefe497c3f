"""Add pending runs, evaluations, verdicts, promotions, corrections and shadows, for scheduled retraining.

The columns have a default or are nullable, so workers of the previous version can go on.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The types when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
ID = sa.String(16)


def upgrade() -> None:
    """Add the columns and create the tables."""
    op.add_column("training_runs", sa.Column("slot", MOMENT, nullable=True))
    op.add_column("training_runs", sa.Column("active", sa.Integer(), nullable=True))
    op.add_column("training_runs", sa.Column("token", ID, nullable=True))
    op.add_column("training_runs", sa.Column("owner", sa.Text(), nullable=True))
    op.add_column("training_runs", sa.Column("lease_until", MOMENT, nullable=True))
    op.add_column("training_runs", sa.Column("ring_after", MOMENT, nullable=True))
    op.add_column("training_runs", sa.Column("requested_at", MOMENT, nullable=True))
    op.add_column("training_runs", sa.Column("data", DOCUMENT, nullable=True))
    # Unique indexes, not constraints: SQLite cannot add a constraint to an existing table.
    op.create_index("ux_training_runs_slot", "training_runs", ["slot"], unique=True)
    op.create_index("ux_training_runs_active", "training_runs", ["active"], unique=True)
    op.create_table(
        "evaluations",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("data_fingerprint", sa.String(64), nullable=False),
        sa.Column("measures", DOCUMENT, nullable=False),
        sa.Column("answers", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_evaluations_model_id"),
        sa.PrimaryKeyConstraint("model_id", "data_fingerprint", name="pk_evaluations"),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID, nullable=True),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("champion_id", ID, nullable=True),
        sa.Column("promote", sa.Boolean(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("checks", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["training_runs.id"], name="fk_verdicts_run_id"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_verdicts_model_id"),
        sa.ForeignKeyConstraint(["champion_id"], ["models.id"], name="fk_verdicts_champion_id"),
        sa.PrimaryKeyConstraint("id", name="pk_verdicts"),
    )
    op.create_index("ix_verdicts_model_id", "verdicts", ["model_id"])
    op.create_table(
        "promotions",
        sa.Column("id", ID, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("previous_id", ID, nullable=True),
        sa.Column("how", sa.String(16), nullable=False),
        sa.Column("verdict_id", ID, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_promotions_model_id"),
        sa.ForeignKeyConstraint(["previous_id"], ["models.id"], name="fk_promotions_previous_id"),
        sa.ForeignKeyConstraint(["verdict_id"], ["verdicts.id"], name="fk_promotions_verdict_id"),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_table(
        "corrections",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("predicted", sa.Text(), nullable=True),
        sa.Column("confidence", sa.REAL(), nullable=True),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_corrections_model_id"),
        sa.PrimaryKeyConstraint("job_id", "index", name="pk_corrections"),
    )
    op.create_index("ix_corrections_model_id", "corrections", ["model_id"])
    op.create_table(
        "shadowed_chunks",
        sa.Column("chunk_id", ID, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("job_model_id", ID, nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("disagreements", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_shadowed_chunks_model_id"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_shadowed_chunks_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("chunk_id", "model_id", name="pk_shadowed_chunks"),
    )
    op.create_index("ix_shadowed_chunks_model_id", "shadowed_chunks", ["model_id"])
    op.create_index("ix_shadowed_chunks_job_id", "shadowed_chunks", ["job_id"])
    op.create_table(
        "disagreements",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("confidence", sa.REAL(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_disagreements_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_disagreements_model_id"),
        sa.PrimaryKeyConstraint("job_id", "index", "model_id", name="pk_disagreements"),
    )
    op.create_index("ix_disagreements_model_id", "disagreements", ["model_id"])


def downgrade() -> None:
    """Drop the tables and the columns.

    No run may be pending or skipped, because the previous version knows neither state.
    """
    for table in (
        "disagreements",
        "shadowed_chunks",
        "corrections",
        "promotions",
        "verdicts",
        "evaluations",
    ):
        op.drop_table(table)
    op.drop_index("ux_training_runs_active", "training_runs")
    op.drop_index("ux_training_runs_slot", "training_runs")
    for column in (
        *("data", "requested_at", "ring_after", "lease_until", "owner", "token", "active", "slot"),
    ):
        op.drop_column("training_runs", column)
