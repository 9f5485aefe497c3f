"""The pipeline answers what Keras does: the labels and confidences of `predict` on the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from jobs.ledger import Ledger
from jobs.ledger.models import find_champion
from jobs.model import Model
from jobs.registry import fetch_model
from jobs.settings import Settings
from jobs.store import Store
from tests.console import Home, rows
from worker.learning import mnist
from worker.predicting.classifier import Classifier
from worker.predicting.decode import decode

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
def images(mnist_dir: Path) -> npt.NDArray[np.uint8]:
    """All of MNIST's 10,000 test images, or the sample's, as they were before they became PNG files."""
    return mnist.read_folder(mnist_dir, lambda _line: None).test_images


@pytest.fixture(scope="module")
def answers_of_keras(champion: tuple[Model, Path], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What Keras itself makes of them: the probability of each class."""
    answers: npt.NDArray[np.float32] = keras.saving.load_model(champion[1]).predict(images, verbose=0)
    return answers


def test_ten_thousand_png_files_decoded_and_classified(
    champion: tuple[Model, Path], images: npt.NDArray[np.uint8], answers_of_keras: npt.NDArray[np.float32]
) -> None:
    # given the images as PNG, and the model as a worker loads it
    pictures = [_png(image) for image in images]
    model, file = champion
    classifier = Classifier.load(file, model.classes, model.input_spec)

    # when they are decoded and classified as a worker does
    found = classifier.predict(np.stack([decode(picture, model.input_spec) for picture in pictures]))

    # then each has Keras's label and confidence
    assert (found.class_index == answers_of_keras.argmax(axis=1)).all()
    assert abs(found.confidence - answers_of_keras.max(axis=1)).max() <= TOLERANCE


def test_ten_thousand_png_files_through_queue_and_workers_to_rows(
    stack: Home,
    digits: Path,
    champion: tuple[Model, Path],
    answers_of_keras: npt.NDArray[np.float32],
) -> None:
    # given the same images as files, named by their number, when they are submitted as a job
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


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
