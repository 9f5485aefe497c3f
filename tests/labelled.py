"""Folders of labelled pictures, each with pixels of its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, *, side: int = 8, kind: str = "png", mode: str = "L") -> bytes:
    """Return an image file whose pixels differ for each number."""
    shape = (side, side) if mode == "L" else (side, side, 3)
    pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return out.getvalue()


def write_classes(
    folder: Path, *, classes: tuple[str, ...] = ("cat", "dog"), each: int = 40, first: int = 0
) -> Path:
    """Write `each` pictures of each class, in a subfolder per class. Return the folder."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for place in range(each):
            data = picture(first + number * each + place)
            (folder / name / f"{first + place:04}.png").write_bytes(data)
    return folder
