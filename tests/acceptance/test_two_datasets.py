"""While jobs of two datasets run, the champion of one is promoted, rolled back and shadowed.

Each model gives every image the same label, so a row's label says which model it comes from.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Final

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from jobs.ledger import Ledger
from jobs.schema import FINISHED, JobState, aliases, jobs, models, predictions
from jobs.settings import ENV_PREFIX, Settings
from tests.console import Home, until, wait_for_broker
from tests.faults.pictures import pictures
from worker.predicting.tensorflow_runtime import keras

DIGITS: Final = tuple("0123456789")
BIRDS: Final = ("finch", "heron", "wren")

#: Images per job: the dataset's other jobs are submitted while it runs.
IMAGES: Final = 400


@pytest.fixture
def home(short_folder: Path) -> Home:
    """A new home, in which all chunks of a job are shadowed."""
    extra = {"CHUNK_IMAGES": "100", "PROCESSES": "2", "SHADOW_SHARE": "1"}
    return Home(short_folder / "home", {ENV_PREFIX + name: value for name, value in extra.items()})


def save_model(path: Path, shape: tuple[int, ...], classes: int, answer: int) -> Path:
    """Save a model that answers this class for every image."""
    layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(classes, activation="softmax")]
    model = keras.Sequential(layers)
    weights, bias = model.get_weights()
    model.set_weights([np.zeros_like(weights), 5 * np.eye(classes, dtype=bias.dtype)[answer]])
    model.save(path)
    return path


def save_birds(folder: Path) -> Path:
    """Save a few pictures of each class, all different."""
    for split in ("train", "validation", "test"):
        for place, name in enumerate(BIRDS):
            (folder / split / name).mkdir(parents=True)
            for number in range(2):
                grey = 20 * place + 100 * number + len(split)
                Image.new("RGB", (30, 20), (grey, 255 - grey, 7)).save(
                    folder / split / name / f"{number}.png"
                )
    return folder


def test_the_champion_of_one_dataset_changes_while_jobs_of_both_run(home: Home, tmp_path: Path) -> None:
    # Given two datasets with a champion each, and a second model for one of them
    home.ok("datasets", "add", "birds", save_birds(tmp_path / "birds"))
    digit = home.ok("models", "register", save_model(tmp_path / "3.keras", (28, 28), 10, 3)).split()[-1]
    finch, heron = (
        home.ok(
            "models", "register", save_model(tmp_path / name, (16, 24, 3), 3, answer), "--dataset", "birds"
        ).split()[-1]
        for name, answer in (("finch.keras", 0), ("heron.keras", 1))
    )
    label_of = {digit: "3", finch: "finch", heron: "heron"}
    dataset_of = {digit: "mnist", finch: "birds", heron: "birds"}
    for model in (digit, finch):
        home.ok("models", "promote", model, "--force")

    images = tmp_path / "images"
    images.mkdir()
    for picture in pictures(IMAGES):
        (images / picture.name).with_suffix(".png").write_bytes(picture.data)
    stopped, submitted = Event(), {"mnist": list[str](), "birds": list[str]()}

    def submit_repeatedly(dataset: str) -> None:
        while not stopped.is_set():
            submitted[dataset].append(home.ok("submit", images, "--dataset", dataset, "--watch").split()[-1])

    ledger = Ledger(Settings(home=home.path).ledger)

    def exists(model: str, *, shadow: bool) -> bool:
        """Return whether the model has classified an image, in a shadow or in another job."""
        is_shadow = jobs.c.shadow_of.is_not(None) if shadow else jobs.c.shadow_of.is_(None)
        with ledger.reading() as connection:
            query = sa.select(jobs.c.id).where(jobs.c.model_id == model, jobs.c.succeeded > 0, is_shadow)
            return connection.scalar(query.limit(1)) is not None

    with home.started("up", log=tmp_path / "up.log"), ThreadPoolExecutor(2) as pool:
        wait_for_broker(home)
        producers = [pool.submit(submit_repeatedly, dataset) for dataset in submitted]
        try:
            # When the champion of one moves there and back, and the second model is its challenger,
            # while jobs of both run
            for _ in range(2):
                home.ok("models", "promote", heron, "--force")
                until(lambda: exists(heron, shadow=False), "a job has labels of the new champion")
                home.ok("models", "rollback", "--dataset", "birds")
                home.ok("models", "shadow", heron)
            done = len(submitted["mnist"]), len(submitted["birds"])
            until(
                lambda: all(len(each) > n + 1 for each, n in zip(submitted.values(), done, strict=True)),
                "more jobs",
            )
        finally:
            stopped.set()
        for producer in producers:
            producer.result()
        until(lambda: exists(heron, shadow=True), "the challenger has classified")
        home.ok("models", "shadow", "--off", "--dataset", "birds")

        def all_ended() -> bool:
            with ledger.reading() as connection:
                return (
                    connection.scalar(sa.select(jobs.c.id).where(jobs.c.state.not_in(FINISHED)).limit(1))
                    is None
                )

        until(all_ended, "all jobs and shadows ended", seconds=180)

    # Then each job has the champion of the dataset that it was submitted for, and only labels of that model
    with ledger.reading() as connection:
        labels = sa.func.min(predictions.c.label), sa.func.max(predictions.c.label), sa.func.count()
        query = (
            sa.select(jobs.c.id, jobs.c.shadow_of, jobs.c.state, jobs.c.model_id, models.c.dataset, *labels)
            .join(models, models.c.id == jobs.c.model_id)
            .join(predictions, predictions.c.job_id == jobs.c.id)
            .group_by(jobs.c.id, models.c.dataset)
        )
        rows = connection.execute(query).all()
        champions = connection.execute(sa.select(aliases.c.dataset, aliases.c.name, aliases.c.model_id)).all()
    ledger.close()
    submitted_for = {job: dataset for dataset, of_it in submitted.items() for job in of_it}
    used: dict[tuple[str, bool], set[str]] = {}
    for job, shadow_of, state, model, dataset, lowest, highest, count in rows:
        assert (state, count) == (JobState.DONE, IMAGES)
        assert dataset == dataset_of[model] == submitted_for[shadow_of or job]
        assert lowest == highest == label_of[model]
        used.setdefault((dataset, shadow_of is not None), set()).add(model)
    assert {job for job, shadow_of, *_ in rows if shadow_of is None} == set(submitted_for)
    # And all of that has happened: both champions had jobs, and only one dataset had a challenger.
    assert used == {
        ("mnist", False): {digit},
        ("birds", False): {finch, heron},
        ("birds", True): {heron},
    }
    assert sorted(champions) == [("birds", "champion", finch), ("mnist", "champion", digit)]
