"""A real backbone, from its file to labels of pictures that no training has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from tests.console import Home

pytest_plugins = ["tests.backbone"]

SHAPES: Final = ("circle", "cross", "ring", "square")


def draw(shape: str, number: int) -> Image.Image:
    """Return a shape in a colour, a place and a size of its own, on a background of its own."""
    rng = np.random.default_rng((number, SHAPES.index(shape)))
    side = int(rng.integers(90, 200))
    picture = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    colour = tuple(rng.integers(0, 256, 3).tolist())
    size = int(rng.integers(side // 3, side // 2))
    left, top = rng.integers(4, side - size - 4, 2).tolist()
    box = (left, top, left + size, top + size)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=size // 6)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=size // 6)
        pen.line((left, top + size, left + size, top), fill=colour, width=size // 6)
    return picture


def write(folder: Path, numbers: range) -> Path:
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in numbers:
            draw(shape, number).save(folder / shape / f"{number}.jpg")
    return folder


def test_few_pictures_are_learnt_on_a_real_backbone(short_folder: Path, lite0: Path) -> None:
    # Given a backbone, and a dataset of 120 drawings whose colours say nothing about what they show
    home = Home(short_folder / "home")
    assert home.ok("backbones", "add", str(lite0), "--licence", "Apache-2.0").strip() == "lite0"
    home.ok("datasets", "add", "shapes", str(write(short_folder / "shapes", range(30))))
    # When a model is trained without another word
    done = home.run("retrain", "--dataset", "shapes", "--wait")
    assert done.returncode == 0, done.stderr
    assert "a head on backbone lite0 for colour images of 224x224 pixels" in done.stderr
    [model] = home.json("models", "list")
    assert (model["architecture"], model["aliases"]) == ("lite0", ["champion"])
    # Then it knows drawings that it has not seen
    new = write(short_folder / "new", range(100, 110))
    assert home.json("models", "evaluate", model["id"], "--images", str(new))["accuracy"] >= 0.8
