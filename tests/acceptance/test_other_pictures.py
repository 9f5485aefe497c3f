"""A model of one's own for pictures of another kind than MNIST's: from its file to labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.console import Home, rows, wait_for_broker
from worker.predicting.tensorflow_runtime import keras

COLOURS = ("red", "green", "blue")


def save_colour_model(path: Path) -> None:
    """Takes 64 x 48 RGB as floats, as networks for photographs do, and answers which colour is the strongest
    in the upper half: were height and width, or two colours, mistaken for one another, it would show.
    """
    model = keras.Sequential(
        [
            keras.Input((48, 64, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Cropping2D(((0, 24), (0, 0))),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.set_weights([20 * np.eye(3, dtype=np.float32), np.zeros(3, np.float32)])
    model.save(path)


def save_photograph(path: Path, upper: int, lower: int) -> None:
    pixels = np.full((90, 160, 3), 30, np.uint8)
    pixels[:45, :, upper] = 220
    pixels[45:, :, lower] = 255
    Image.fromarray(pixels).save(path)


def test_a_model_of_ones_own_classifies_colour_photographs(new_home: Home, tmp_path: Path) -> None:
    home = new_home
    # Given a folder of photographs, and a model for them that was trained elsewhere
    folder = tmp_path / "photographs"
    folder.mkdir()
    expected = {}
    for number in range(40):
        upper, lower = number % 3, (number // 3) % 3
        name = f"{number}.{('jpg', 'png', 'webp')[number % 3]}"
        save_photograph(folder / name, upper, lower)
        expected[name] = COLOURS[upper]
    save_colour_model(tmp_path / "colours.keras")

    # When it is registered, Then its file says what pictures it takes
    told = json.loads(
        home.ok("models", "register", tmp_path / "colours.keras", "--classes", ",".join(COLOURS), "--json")
    )
    assert told["input_spec"] == {
        "width": 64,
        "height": 48,
        "mode": "RGB",
        "resampling": "bilinear",
        "invert": "never",
        "reduction": 2,
    }

    # And as the champion it classifies them
    home.ok("models", "promote", told["model"], "--force")
    with home.started("up", log=tmp_path / "up.log"):
        wait_for_broker(home)
        job = home.ok("submit", folder, "--watch").split()[-1]
    found = rows(home.ok("predictions", job, "--format", "csv"))
    assert {Path(row["name"]).name: row["label"] for row in found} == expected
    assert {row["model"] for row in found} == {told["model"]}
