"""The pipeline answers what Keras does: the labels and confidences of `predict` on the same pixels."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pytest

from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion
from jobs.models.model import Model
from jobs.settings import Settings
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store
from tests.console import Home, rows
from tests.digits import read_digits

#: How far a confidence may be from Keras's. Sums in another order differ by some 1e-7; a model that computes
#: in float16 or bfloat16 is further off.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def champion(trained: Home) -> tuple[Model, Path]:
    """The trained model's row, and its file."""
    settings = Settings.load(home=trained.path)
    ledger = Ledger(settings.ledger)
    with ledger.reading() as connection:
        model = find_champion(connection)
    ledger.close()
    assert model is not None
    return model, fetch_model(Store(settings.store), model, settings.cache_dir)


@pytest.fixture(scope="module")
def answers_of_keras(champion: tuple[Model, Path], mnist_dir: Path) -> npt.NDArray[np.float32]:
    """What Keras itself makes of all of MNIST's test images, or the sample's: each class's probability."""
    images = read_digits(mnist_dir).test_images
    answers: npt.NDArray[np.float32] = keras.saving.load_model(champion[1]).predict(images, verbose=0)
    return answers


def test_ten_thousand_png_files_through_queue_and_workers_to_rows(
    stack: Home,
    digits: Path,
    champion: tuple[Model, Path],
    answers_of_keras: npt.NDArray[np.float32],
) -> None:
    # given these images as files, named by their number, when they are submitted as a job
    job = stack.ok("submit", digits, "--watch").split()[-1]
    predictions = rows(stack.ok("predictions", job, "--format", "csv"))

    # then there is one row for each
    by_number = {int(Path(row["name"]).stem): row for row in predictions}
    assert len(by_number) == len(predictions) == len(answers_of_keras)

    # and each has the label and the confidence that Keras gives this very image
    in_order = [by_number[number] for number in range(len(predictions))]
    classes = champion[0].classes
    assert [row["label"] for row in in_order] == [classes[best] for best in answers_of_keras.argmax(axis=1)]
    confidences = np.array([float(row["confidence"]) for row in in_order])
    assert abs(confidences - answers_of_keras.max(axis=1)).max() <= TOLERANCE


def test_the_most_probable_classes_of_a_job_that_asks_for_them(
    stack: Home,
    digits: Path,
    champion: tuple[Model, Path],
    answers_of_keras: npt.NDArray[np.float32],
) -> None:
    # given the images of one digit, when they are submitted with three classes each
    job = stack.ok("submit", digits / "4", "--top", 3, "--watch").split()[-1]
    found = [json.loads(line) for line in stack.ok("predictions", job, "--json").splitlines()]
    assert len(found) > 100

    # then each image has the three that Keras finds most probable, and the first is its label
    answers = answers_of_keras[[int(Path(image["name"]).stem) for image in found]]
    number_of = {name: number for number, name in enumerate(champion[0].classes)}
    numbers = np.array([[number_of[each["label"]] for each in image["alternatives"]] for image in found])
    confidences = np.array([[each["confidence"] for each in image["alternatives"]] for image in found])
    same = partial(np.testing.assert_allclose, confidences, rtol=1e-3, atol=1e-7)
    same(np.take_along_axis(answers, numbers, axis=1))
    same(-np.sort(-answers, axis=1)[:, :3])
    assert [(image["label"], image["confidence"]) for image in found] == [
        (image["alternatives"][0]["label"], image["alternatives"][0]["confidence"]) for image in found
    ]
