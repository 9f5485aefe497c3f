"""A backbone: a pretrained network whose features of an image classifiers are built on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from jobs.models.model import InputSpec

#: How to get one, to follow a colon.
ADD_BACKBONE: Final = (
    "`labelmill backbones add efficientnetv2b0` adds one, or any other network of keras.applications"
)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A registered backbone: one row of the ledger."""

    name: str
    sha256: str  # of its file in the store
    size_bytes: int
    input_spec: InputSpec  # of the images that it was trained on
    features: int  # how many numbers it returns for an image
    source: str  # the file that it was made from
    licence: str | None
    created_at: datetime
