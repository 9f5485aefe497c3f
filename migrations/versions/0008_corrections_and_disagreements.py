"""Indexes for looking at corrections by their image, and at a challenger's disagreements by their job.

Workers of the version before go on beside it: they ask the same and get it later.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the two. Who corrects or shadows waits meanwhile: a second for each million rows."""
    op.create_index("ix_corrections_image_sha256", "corrections", ["image_sha256"])
    op.drop_index("ix_disagreements_model_id", "disagreements")
    op.create_index(
        "ix_disagreements_model_id_job_id_index", "disagreements", ["model_id", "job_id", "index"]
    )


def downgrade() -> None:
    """Makes them as they were."""
    op.drop_index("ix_disagreements_model_id_job_id_index", "disagreements")
    op.create_index("ix_disagreements_model_id", "disagreements", ["model_id"])
    op.drop_index("ix_corrections_image_sha256", "corrections")
