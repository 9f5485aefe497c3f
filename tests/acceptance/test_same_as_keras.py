"""The pipeline answers what Keras does: the labels and confidences of `predict` on the same pixels."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from jobs.settings import Settings
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store
from labelmill import Client
from tests.console import Home, rows
from tests.digits import read_digits

#: How far a confidence may be from Keras's. Sums in another order differ by some 1e-7; a model that computes
#: in float16 or bfloat16 is further off.
TOLERANCE = 1e-5


def test_ten_thousand_png_files_through_queue_and_workers_to_rows(
    stack: Home, trained: Home, digits: Path, mnist_dir: Path
) -> None:
    # given what Keras itself makes of all of MNIST's test images, or the sample's: each class's probability
    settings = Settings.load(home=trained.path)
    with Client(settings) as client:
        champion = client.model("champion")
    file = fetch_model(Store(settings.store), champion, settings.cache_dir)
    answers = keras.saving.load_model(file).predict(read_digits(mnist_dir).test_images, verbose=0)

    # when these images are submitted as files, named by their number; another test may promote another model
    job = stack.ok("submit", digits, "--model", champion.id, "--watch").split()[-1]
    predictions = rows(stack.ok("predictions", job, "--format", "csv"))

    # then there is one row for each
    by_number = {int(Path(row["name"]).stem): row for row in predictions}
    assert len(by_number) == len(predictions) == len(answers)

    # and each has the label and the confidence that Keras gives this very image
    in_order = [by_number[number] for number in range(len(predictions))]
    labels = [champion.classes[best] for best in answers.argmax(axis=1)]
    assert [row["name"] for row, label in zip(in_order, labels, strict=True) if row["label"] != label] == []
    confidences = np.array([float(row["confidence"]) for row in in_order])
    assert abs(confidences - answers.max(axis=1)).max() <= TOLERANCE
