"""The tutorial on a dataset of one's own is run as it stands, and prints what it says."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from labelmill.console.terminal import ExitCode
from tests.console import COMMAND_SECONDS, LABELMILL, Home, wait_for_broker
from tests.pages import Example, console_examples
from worker.predicting.tensorflow_runtime import keras

TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial-own-images.md").read_text()

CLASSES = ("circle", "square", "triangle")

#: A reader has a minute for each training, this test some seconds.
SHORTER = ("--max-minutes 1 ", "--max-minutes 0.1 ")

#: What depends on chance if the training is that short: whether the gate promotes.
VERDICT = re.compile(r" +(yes|NO) |promoted: ")


#: What readers type in place of these words: the command that prints it, and where.
IDS = {
    "submit": ("JOB", r"^(\w{16})$"),
    "retrain": ("MODEL", r"^model (\w{16}),"),
    "models register": ("MODEL", r"^(\w{16})$"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader of the tutorial sits: with drawings, others on dark paper, and a model."""
    draw_shapes(tmp_path / "shapes", 200, dark=False)
    draw_shapes(tmp_path / "new", 100, dark=True)
    draw_shapes(tmp_path / "more", 40, dark=True)
    keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    ).save(tmp_path / "mine.keras")
    return tmp_path


def draw_shapes(folder: Path, each: int, *, dark: bool) -> None:
    """Draws noisy shapes of many sizes and colours, in folders named after classes."""
    chance = np.random.default_rng(each)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            draw_shape(name, chance, dark=dark).save(folder / name / f"{number:03}.png", compress_level=1)


def draw_shape(name: str, chance: np.random.Generator, *, dark: bool) -> Image.Image:
    paper, ink = ((0, 70), (180, 256)) if dark else ((150, 256), (0, 120))
    side = int(chance.integers(28, 40))
    image = Image.new("RGB", (side, side), tuple(chance.integers(*paper, 3).tolist()))
    radius = int(chance.integers(6, side // 2 - 3))
    x, y = chance.integers(radius + 1, side - radius, 2).tolist()
    box, colour = (x - radius, y - radius, x + radius, y + radius), tuple(chance.integers(*ink, 3).tolist())
    draw = ImageDraw.Draw(image)
    if name == "circle":
        draw.ellipse(box, fill=colour)
    elif name == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=colour)
    noisy = np.asarray(image, int) + chance.integers(-25, 26, (side, side, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture
def home(short_folder: Path) -> Iterator[Home]:
    """A fresh home, with `labelmill up`."""
    home = Home(short_folder / "home")
    with home.started("up", log=short_folder / "up.log"):
        wait_for_broker(home)
        yield home


def test_the_tutorial_runs(home: Home, folder: Path) -> None:
    reader = Reader(home, folder)
    for example in console_examples(TUTORIAL):
        reader.follow(example)

    # Then there are two versions, the models of two training runs, one that was brought, and a schedule.
    assert home.json("datasets", "show", "shapes")["version"] == 2
    assert len(home.json("models", "list", "--dataset", "shapes")) == 3
    [schedule] = [each for each in home.json("schedule") if each["dataset"] == "shapes"]
    assert schedule["after_corrections"] == 100


class Reader:
    """Types the tutorial's commands, with the ids that the commands before have printed."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home = home
        self.folder = folder
        self.ids: dict[str, str] = {}

    def follow(self, example: Example) -> None:
        """Runs the command of an example, and compares what it prints in form."""
        if "--from review.csv" in example.command:
            self.fill_in_labels()
        if "models rollback" in example.command:
            # A model that was refused has nothing to go back from. One that was promoted is champion already.
            self.home.run("models", "promote", self.ids["MODEL"], "--force")
        status, printed = self.type(example.command)
        judged = example.command.startswith(("labelmill retrain", "labelmill models promote"))
        refused = judged and status == ExitCode.WITH_ERRORS
        assert refused or status == 0, f"{example.command}\n{printed}"
        for line in example.output:
            if not (refused and VERDICT.match(line)):
                assert re.search(form(line), printed), f"{example.command}\n{line}\n\n{printed}"
        for command, (name, pattern) in IDS.items():
            if example.command.startswith(f"labelmill {command}"):
                [self.ids[name]] = re.findall(pattern, printed, re.MULTILINE)

    def type(self, command: str) -> tuple[int, str]:
        for name, value in [*self.ids.items(), SHORTER, ("labelmill ", f"{LABELMILL} ")]:
            command = command.replace(name, value)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.home.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * COMMAND_SECONDS,  # a training is the longest command of all tests
            check=False,
        )
        return done.returncode, done.stdout

    def fill_in_labels(self) -> None:
        """Does what a person does in a spreadsheet."""
        path = self.folder / "review.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(row | {"label": Path(row["name"]).parent.name} for row in rows)


def form(line: str) -> str:
    """Return a pattern for the line with any numbers, ids and classes; `...` is anything."""
    words = []
    for word in line.split():
        bare = word.strip("();:,")
        varies = bare in (*CLASSES, "-") or any(letter.isdigit() for letter in bare)
        words.append(".*" if word == "..." else r"\S+" if varies else re.escape(word))
    return r"\s+".join(words)
