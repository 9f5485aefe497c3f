"""Pictures in colours, in folders as a dataset has them: small, and learnt in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def picture(colour: str, number: int, side: int = 24) -> npt.NDArray[np.uint8]:
    """Return a square of this colour on noise: uint8 (side, side, 3). Each number gives another one."""
    dice = np.random.default_rng((number, *COLOURS[colour]))
    pixels = dice.integers(0, 80, (side, side, 3), np.uint8)
    top, left = dice.integers(2, side // 2, 2)
    pixels[top : top + side // 3, left : left + side // 3] = COLOURS[colour]
    return pixels


def write_pictures(folder: Path, each: dict[str, int], classes: Sequence[str] = tuple(COLOURS)) -> Path:
    """Write so many pictures of each class in each split."""
    number = 0
    for split, count in each.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for _ in range(count):
                number += 1
                Image.fromarray(picture(name, number)).save(folder / split / name / f"{number}.png")
    return folder
