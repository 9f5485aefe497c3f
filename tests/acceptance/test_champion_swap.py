"""The champion changes under way: what runs stays on its model, what comes next has the new one, and no
worker is started anew.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from jobs.models.model import MNIST_INPUT
from jobs.settings import ENV_PREFIX, Settings
from labelmill.client import Client
from tests.console import Home, processes_below, rows, until, wait_for_broker
from tests.digits import DIGITS, prepare_arrays, read_digits
from worker.learning.fit import save
from worker.learning.networks import build
from worker.predicting.classifier import Classifier
from worker.predicting.tensorflow_runtime import keras


def labels_of(model: Path, pixels: np.ndarray) -> list[str]:
    """What the model takes each image for."""
    classifier = Classifier.load(model, DIGITS, MNIST_INPUT)
    places = classifier.predict(prepare_arrays(pixels, MNIST_INPUT)).class_index
    return [DIGITS[place] for place in places]


def stored_file(home: Home, model_id: str) -> Path:
    """The model's file in the home's store."""
    [sha256] = [model["sha256"] for model in home.json("models", "list") if model["id"] == model_id]
    return home.path / "store" / "models" / f"{sha256}.keras"


def test_a_champion_is_swapped_while_all_of_mnist_is_classified(
    new_home: Home, mnist_dir: Path, tmp_path: Path
) -> None:
    home = new_home
    # More chunks than a machine has at work at a time
    home.extra = {ENV_PREFIX + "CHUNK_IMAGES": "500", ENV_PREFIX + "PROCESSES": "2"}
    data = read_digits(mnist_dir)
    test_images = next(mnist_dir.glob("t10k-images*"))
    sources = [next(mnist_dir.glob("train-images*")), test_images]
    everything = np.concatenate([data.train_images, data.test_images])

    # Given a champion, and beside it a model that knows nothing and answers something else
    [champion] = [model["id"] for model in home.json("models", "list")]
    keras.utils.set_random_seed(7)
    save(build("mlp", MNIST_INPUT, 10), tmp_path / "ignorant.keras")
    ignorant = home.ok("models", "register", tmp_path / "ignorant.keras").split()[-1]
    known, guessed = (labels_of(stored_file(home, each), everything) for each in (champion, ignorant))
    assert sum(one != other for one, other in zip(known, guessed, strict=True)) > 0.5 * len(everything)

    with home.started("up", log=tmp_path / "up.log") as up, Client(Settings(home=home.path)) as client:
        wait_for_broker(home)
        # and a job of 70,000 images that is under way
        job = home.ok("submit", *sources).split()[-1]
        until(lambda: client.status(job).done > 0, "the first chunk is done")
        before = set(processes_below(up.pid))

        # When the other one is made the champion, gate or no gate; what is not in work yet waits for that, on
        # a machine, too, that takes less time for the job than a command takes to start
        client.pause(job)
        home.ok("models", "promote", ignorant, "--force")
        client.resume(job)
        status = client.status(job)
        assert status.done < status.total, "the job was over before the champion changed"
        after = home.ok("submit", test_images, "--watch").split()[-1]

        # Then the job ends with every label the old one's, and the next job with the new one's
        client.wait(job, timeout=120)
        for each, model, expected in (
            (job, champion, known),
            (after, ignorant, guessed[-len(data.test_images) :]),
        ):
            found = rows(home.ok("predictions", each, "--format", "csv"))
            assert Counter(row["model"] for row in found) == {model: len(expected)}
            assert [row["label"] for row in found] == expected
        # by the same processes.
        assert set(processes_below(up.pid)) == before

        # And one command takes it back, at once.
        home.ok("models", "rollback")
        back = home.ok("submit", test_images, "--watch").split()[-1]
        assert client.status(back).model == champion
        assert [each["how"] for each in home.json("models", "history")] == ["rollback", "promote", "retrain"]
