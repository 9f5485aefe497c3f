"""Record the newest correction that triggered a training run, instead of their number.

The number did not change if the same images were corrected again, so these corrections triggered no run. Stop
beat of the previous version first.

Revision ID: 0016
Revises: 0015
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# The type when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")


def upgrade() -> None:
    """Replace the numbers, which cannot be converted, by empty times."""
    _replace_column(MOMENT)


def downgrade() -> None:
    """Replace the times by empty numbers."""
    _replace_column(sa.BigInteger())


def _replace_column(kind: sa.types.TypeEngine[Any]) -> None:
    op.drop_index("ux_training_runs_corrections_seen", "training_runs")
    op.drop_column("training_runs", "corrections_seen")
    op.add_column("training_runs", sa.Column("corrections_seen", kind, nullable=True))
    op.create_index(
        "ux_training_runs_corrections_seen", "training_runs", ["dataset", "corrections_seen"], unique=True
    )
