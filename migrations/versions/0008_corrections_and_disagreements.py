"""Add indexes for finding corrections by image, and a challenger's disagreements by job.

Workers of the previous version can go on: their queries are the same, but slower.

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
    """Create the indexes. Corrections and shadows wait meanwhile, about a second per million rows."""
    op.create_index("ix_corrections_image_sha256", "corrections", ["image_sha256"])
    op.drop_index("ix_disagreements_model_id", "disagreements")
    op.create_index(
        "ix_disagreements_model_id_job_id_index", "disagreements", ["model_id", "job_id", "index"]
    )


def downgrade() -> None:
    """Restore the previous indexes."""
    op.drop_index("ix_disagreements_model_id_job_id_index", "disagreements")
    op.create_index("ix_disagreements_model_id", "disagreements", ["model_id"])
    op.drop_index("ix_corrections_image_sha256", "corrections")
