"""The table of models, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from jobs.model import Model
from labelmill.tables import Column, short_time

COLUMNS: Final = (
    Column("model"),
    Column("aliases"),
    Column("kind"),
    Column("accuracy", right=True),
    Column("input"),
    Column("file", least=8),
    Column("classes", least=12),
    Column("created (UTC)", leave_out=1),
)

#: At most this many classes are named.
_NAMED: Final = 10


def model_row(model: Model) -> tuple[str, ...]:
    """Return a model's cells, one for each of COLUMNS."""
    spec = model.input_spec
    return (
        model.id,
        ", ".join(model.aliases) or "-",
        model.architecture,
        "-" if model.accuracy is None else f"{model.accuracy:.4f}",
        f"{spec.width}x{spec.height} {'grey' if spec.mode == 'L' else 'RGB'}",
        str(model.metrics.get("file", "-")),  # of a registered model
        _class_summary(model.classes),
        short_time(model.created_at),
    )


def _class_summary(classes: Sequence[str]) -> str:
    named = ", ".join(classes[:_NAMED])
    return f"{len(classes)}: {named}{', ...' if len(classes) > _NAMED else ''}"
