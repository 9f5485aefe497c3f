"""A worker process's resources: how much it claims, what it caches, and how it starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Final

import pytest

from jobs.ledger.workers import WorkerRow, list_workers, report_worker
from jobs.messages import CLASSIFY_QUEUE
from jobs.storage.registry import model_key
from tests.faults import light
from tests.harness import Harness, digits
from tests.kerasfile import keras_file
from tests.programs import run_python
from tests.registering import register_digits
from worker.predicting.context import (
    CLAIM_SECONDS,
    FIRST_CLAIM_IMAGES,
    MAX_CLAIM_IMAGES,
    MAX_CLAIM_SECONDS,
    MODELS_KEPT,
    SMALLEST_BATCH,
    WorkerContext,
    owner_name,
)

on_one_database = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


# ---- how much is claimed ------------------------------------------------------------------------------


@on_one_database
def test_a_claim_is_half_a_second_of_work_in_whole_batches(context: WorkerContext) -> None:
    # given a model of unknown speed, and then each of these speeds
    assert context.images_per_claim("a model") == FIRST_CLAIM_IMAGES
    for image_seconds, images in [
        (10.0, SMALLEST_BATCH),  # slow: at least the smallest batch
        (CLAIM_SECONDS / 100, 96),
        (CLAIM_SECONDS / 5_000.5, 4_992),
        (1e-6, MAX_CLAIM_IMAGES),  # fast: at most the maximum
        (0.0, MAX_CLAIM_IMAGES),
    ]:
        context.record_speed("a model", 1_000, 1_000 * image_seconds)
        assert context.images_per_claim("a model") == images

    # and each model has its own speed
    assert context.images_per_claim("another") == FIRST_CLAIM_IMAGES


@on_one_database
def test_a_claim_covers_more_work_if_the_ledger_takes_long(context: WorkerContext) -> None:
    # given a model that takes a millisecond per image
    context.record_speed("a model", 1_000, 1.0)
    for ledger_seconds, work_seconds in [
        (0.01, CLAIM_SECONDS),
        (0.3, 1.2),  # claiming and recording are a fifth of 1.5 seconds
        (60.0, MAX_CLAIM_SECONDS),
    ]:
        # when claiming and recording takes this long, then it stays at most a fifth, if it can
        context.record_ledger_time(ledger_seconds)
        images = 1_000 * work_seconds
        assert images - SMALLEST_BATCH < context.images_per_claim("a model") <= images


@on_one_database
def test_a_few_images_say_nothing_about_a_models_speed(context: WorkerContext) -> None:
    context.record_speed("a model", SMALLEST_BATCH - 1, 100.0)
    assert context.images_per_claim("a model") == FIRST_CLAIM_IMAGES


# ---- what is loaded first ---------------------------------------------------------------------------


@pytest.mark.parametrize("remedy", ["its file is back", "another champion"])
@on_one_database
def test_a_champion_that_cannot_be_loaded_keeps_no_other_from_it(
    harness: Harness, caplog: pytest.LogCaptureFixture, remedy: str
) -> None:
    # given a second dataset whose champion's file is gone
    gone = register_digits(harness.ledger, harness.store, keras_file(b"gone"), champion=True, dataset="birds")
    harness.submit(digits(1), model=gone)
    harness.store.remove(model_key(gone.sha256))
    row = WorkerRow(owner_name(os.getppid()), socket.gethostname(), CLASSIFY_QUEUE, ["me"], "0")
    with harness.ledger.transaction() as connection:
        report_worker(connection, row, up_seconds=1)

    # when a process warms up, then its worker's row and the log say so, and it has loaded the other champion
    harness.context.warm_up()
    assert "the champion of dataset birds was not loaded" in caplog.text
    assert "birds was not loaded" in (_problem(harness) or "")
    harness.store.remove(model_key(harness.model.sha256))
    assert harness.context.classifier(harness.model.id)

    # and when its file is back, or it is no champion any more, the row says nothing
    if remedy == "another champion":
        gone = register_digits(
            harness.ledger, harness.store, keras_file(b"new"), champion=True, dataset="birds"
        )
    else:
        harness.store.put(model_key(gone.sha256), keras_file(b"gone"))
    assert harness.context.classifier(gone.id)
    assert _problem(harness) is None


def _problem(harness: Harness) -> str | None:
    with harness.ledger.reading() as connection:
        [worker] = list_workers(connection)
    return worker.problem


# ---- what is cached -----------------------------------------------------------------------------------


@on_one_database
def test_the_models_used_last_stay_loaded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    # given one model more than are kept loaded
    loaded: list[str] = []
    real = light.Classifier.load.__func__  # type: ignore[attr-defined]

    def load(cls: type[light.Classifier], path: Path, *arguments: Any, **options: Any) -> light.Classifier:
        loaded.append(path.stem)
        return real(cls, path, *arguments, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(light.Classifier, "load", classmethod(load))
    models = [
        register_digits(harness.ledger, harness.store, keras_file(bytes([number])))
        for number in range(MODELS_KEPT + 1)
    ]

    def use(*numbers: int) -> list[int]:
        """Use these models in turn, and return those that had to be loaded."""
        loaded.clear()
        for number in numbers:
            first = harness.context.classifier(models[number].id)
            assert harness.context.classifier(models[number].id) is first
        by_hash = {model.sha256: number for number, model in enumerate(models)}
        return [by_hash[name] for name in loaded]

    # when they are used, then each is loaded once, and the least recently used one is dropped first
    assert use(0, 1, 2) == [0, 1, 2]
    assert use(1, 2, 0) == []
    assert use(3) == [3]
    assert use(2, 0, 3) == []
    assert use(1) == [1]


# ---- how a process starts -----------------------------------------------------------------------------


#: A process with a champion that Keras serves, whose time limit strikes when half of TensorFlow is imported.
_STRUCK: Final = '''
import os, signal, sys
from contextlib import closing
from billiard.exceptions import SoftTimeLimitExceeded
from jobs.models.model import MNIST_INPUT
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client.migrating import open_ledger
from tests.kerasfile import keras_file
from tests.registering import register_digits
from worker.predicting.context import WorkerContext

def strike(*_):
    raise SoftTimeLimitExceeded

class Half:
    """Looks for no module, and strikes when a certain one is looked for: always at the same place."""

    def find_spec(self, name, *_):
        if name == "tensorflow.python.trackable.data_structures":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGUSR1)

settings = Settings.load()
with closing(open_ledger(settings)) as ledger:
    register_digits(ledger, Store(settings.store), keras_file(), champion=True)
signal.signal(signal.SIGUSR1, strike)
sys.meta_path.insert(0, Half())
with WorkerContext(settings, processes=1) as context:
    try:
        context.warm_up()
    except SoftTimeLimitExceeded:
        print("the time limit has struck")
    try:
        context.warm_up()
        from worker.learning.networks import build
        build("mlp", MNIST_INPUT, 10)
    except Exception as error:
        print(repr(error))
    else:
        print("and TensorFlow is whole")
'''


def test_a_time_limit_that_strikes_in_an_import_leaves_no_half_of_tensorflow(tmp_path: Path) -> None:
    # Otherwise every later job in this process would fail, because its model "could not be loaded".
    done = run_python(_STRUCK, check=False, LABELMILL_HOME=str(tmp_path))
    assert done.stdout.splitlines() == ["the time limit has struck", "and TensorFlow is whole"]
