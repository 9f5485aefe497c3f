"""Add the most probable classes of each image, for jobs that ask for them.

Processes of the previous version can go on, but their predictions have no alternatives: replace the workers
before you submit jobs with `--top`.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# The type when this migration was written. Not from jobs/schema.py, because a migration must not change.
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

VIEW = """
VIEW results AS
SELECT predictions.job_id AS job, jobs.key, predictions.name, predictions.label, predictions.confidence,
    predictions.error, jobs.model_id AS model, jobs.finished_at{more}
FROM predictions JOIN jobs ON jobs.id = predictions.job_id
WHERE jobs.shadow_of IS NULL
"""


def upgrade() -> None:
    """Add the columns, also to the view `results`."""
    op.add_column("jobs", sa.Column("top_k", sa.Integer(), nullable=True))
    op.add_column("predictions", sa.Column("alternatives", DOCUMENT, nullable=True))
    view = VIEW.format(more=", predictions.alternatives")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"CREATE OR REPLACE {view}")  # keeps the rights of those who read it
    else:
        op.execute("DROP VIEW results")
        op.execute(f"CREATE {view}")


def downgrade() -> None:
    """Drop the columns."""
    op.execute("DROP VIEW results")
    op.drop_column("predictions", "alternatives")
    op.drop_column("jobs", "top_k")
    op.execute(f"CREATE {VIEW.format(more='')}")
