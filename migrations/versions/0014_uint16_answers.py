"""Store the answers of evaluations as uint16, for models with more than 255 classes.

Stop the trainers of the previous version: they write and read one byte per answer.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

#: Stand for a class if the model gave no answer, before and after.
NO_ANSWER_BYTE: Final = 255
NO_ANSWER: Final = 65_535

evaluations = sa.table(
    "evaluations",
    sa.column("model_id", sa.String),
    sa.column("data_fingerprint", sa.String),
    sa.column("answers", sa.LargeBinary),
)
models = sa.table(
    "models", sa.column("id", sa.String), sa.column("classes", sa.JSON().with_variant(JSONB(), "postgresql"))
)


def upgrade() -> None:
    """Write each byte as two."""
    _convert(_to_uint16)


def downgrade() -> None:
    """Write each answer as a byte, and drop the evaluations of models with too many classes for that."""
    connection = op.get_bind()
    for model_id, classes in connection.execute(sa.select(models.c.id, models.c.classes)).all():
        if len(classes) > NO_ANSWER_BYTE:
            connection.execute(evaluations.delete().where(evaluations.c.model_id == model_id))
    _convert(_to_bytes)


def _convert(convert: Callable[[bytes], bytes]) -> None:
    """Rewrite the answers of all evaluations, one row at a time."""
    connection = op.get_bind()
    keys = (evaluations.c.model_id, evaluations.c.data_fingerprint)
    for key in connection.execute(sa.select(*keys)).all():
        row = sa.and_(*(column == value for column, value in zip(keys, key, strict=True)))
        answers = connection.execute(sa.select(evaluations.c.answers).where(row)).scalar_one()
        connection.execute(evaluations.update().where(row).values(answers=convert(bytes(answers))))


def _to_uint16(answers: bytes) -> bytes:
    indexes = array("H", (NO_ANSWER if byte == NO_ANSWER_BYTE else byte for byte in answers))
    if sys.byteorder == "big":
        indexes.byteswap()
    return indexes.tobytes()


def _to_bytes(answers: bytes) -> bytes:
    # NO_ANSWER's low byte is NO_ANSWER_BYTE.
    return answers[::2]
