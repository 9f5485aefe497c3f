"""Correcting and health as a person types them: real commands, real files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.models.model import MNIST_INPUT
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill import Client
from tests.console import Home, rows
from tests.registering import register_digits
from worker.predicting.context import WorkerContext
from worker.predicting.pipeline import classify_next

#: How many images the job has.
IMAGES = 30


@pytest.fixture
def home(short_folder: Path, tmp_path: Path) -> Home:
    """A home with an untrained champion: not what it answers matters here."""
    from worker.learning.fit import save
    from worker.learning.networks import build
    from worker.predicting.tensorflow_runtime import keras

    path = tmp_path / "model.keras"
    keras.utils.set_random_seed(1)
    save(build("mlp", MNIST_INPUT, 10), path)
    home = Home(short_folder / "home")
    settings = Settings.load(home=home.path)
    with Client(settings) as client:
        register_digits(client.ledger, Store(settings.store), path.read_bytes(), champion=True)
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def classified(home: Home, folder: Path) -> str:
    """A job of the folder's images, classified by the code that a worker runs."""
    job = home.ok("submit", folder).strip()
    with WorkerContext(Settings.load(home=home.path), processes=1) as context:
        assert sum(iter(lambda: classify_next(context), 0)) == IMAGES
    return job


@pytest.mark.fast
def test_corrections_from_the_first_to_the_last(home: Home, folder: Path, tmp_path: Path) -> None:
    # given a job that was classified
    job = classified(home, folder)
    predicted = [row["label"] for row in rows(home.ok("predictions", job, "--format", "csv"))]
    other = ["1" if label == "0" else "0" for label in predicted]

    # when one image is corrected and another confirmed, then each is said in a line
    done = home.run("correct", job, "0", other[0])
    assert (done.returncode, done.stdout) == (0, "")
    assert f"image 0 of job {job} ({folder}/00.png) is {other[0]}; the prediction was" in done.stderr
    assert "the prediction is confirmed" in home.run("correct", job, "1", predicted[1]).stderr
    assert home.json("correct", job, "2", other[2])["label"] == other[2]

    # when more come by files, CSV and JSON lines and stdin
    csv = tmp_path / "more.csv"
    csv.write_text("\ufeffjob,index,label\n" + "".join(f"{job},{n},{other[n]}\n" for n in range(3, 10)))
    assert "7 corrections stored" in home.run("correct", "--from", csv).stderr
    lines = tmp_path / "more.jsonl"
    lines.write_text(
        "".join(json.dumps({"job": job, "index": n, "label": other[n]}) + "\n" for n in (10, 11))
    )
    assert len(home.json("correct", "--from", lines)) == 2
    home.ok("correct", "--from", "-", stdin=f"index,job,label\n12,{job},{other[12]}\n")

    # then all are listed, the latest first
    listed = home.json("correct", "--list")
    assert listed[0]["index"] == 12
    assert {(each["index"], each["label"]) for each in listed} == {
        (n, predicted[1] if n == 1 else other[n]) for n in range(13)
    }
    table = home.ok("correct", "--list").splitlines()
    assert (len(table), table[1].split()[:4]) == (14, [job, "12", other[12], predicted[12]])

    # and the health of the champion counts them
    health = home.json("models", "health")
    assert (health["right"], health["labelled"], health["images"]) == (1, 13, IMAGES)
    assert health["live_accuracy"] == pytest.approx(1 / 13)
    assert "was never evaluated" in health["unknown"]
    said = home.ok("models", "health")
    assert "live accuracy   0.0769, 1 right of 13 labelled" in said
    assert "was never evaluated" in said

    # and one is taken back, with its copy, though the job was purged
    home.ok("purge", "--payloads", "0")
    copies = home.path / "store" / "corrections"
    assert len(list(copies.iterdir())) == 13
    assert "has no correction now" in home.run("correct", job, "0", "--undo").stderr
    assert len(list(copies.iterdir())) == len(home.json("correct", "--list")) == 12
    done = home.run("correct", job, "0", other[0])
    assert done.returncode == 2
    assert "were purged on" in done.stderr


def test_what_is_typed_wrong_is_told_and_stores_nothing(home: Home) -> None:
    for arguments in (
        ("job", "0"),
        ("job", "0", "1", "--undo"),
        ("job", "0", "1", "--list"),
        ("job", "0", "--from", "file.csv"),
        ("job", "--list"),
        ("--list", "--from", "file.csv"),
        (),
        ("--undo",),
    ):
        done = home.run("correct", *arguments)
        assert done.returncode == 2, arguments
        assert "Give JOB INDEX LABEL" in " ".join(done.stderr.split()), arguments
    assert home.json("correct", "--list") == []
