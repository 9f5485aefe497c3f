"""A worker without TensorFlow classifies with compiled models, and leaves other chunks to other workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from jobs.ledger import Ledger
from jobs.ledger.learning.runtimes import list_runtimes, save_runtimes
from jobs.models.model import InputSpec, Model
from jobs.models.runtime import Runtime
from jobs.schema import ChunkState, chunks
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.artefacts import artefact_key
from jobs.storage.registry import register_model
from jobs.storage.store import Store
from tests.console import Home, has_tensorflow, processes_below, rows, until
from tests.programs import run_python
from tests.registering import make_quickest
from worker.learning.compiling.compile import compile_model
from worker.predicting.tensorflow_runtime import keras

#: With the packages of the extra `slim` only, as far as Python can see.
_NO_TENSORFLOW: Final = """
import sys
sys.modules.update(dict.fromkeys(("tensorflow", "keras", "openvino", "ai_edge_litert")))
"""

#: A worker's process with TensorFlow that loads a model, and says whether it has imported TensorFlow.
_LOAD: Final = """
import sys
from jobs.settings import Settings
from worker.predicting.context import WorkerContext
with WorkerContext(Settings.load(), processes=1) as context:
    context.classifier(sys.argv[1])
    print("tensorflow" in sys.modules)
"""

IMAGES: Final = 600


@pytest.fixture
def home(settings: Settings, ledger_url: str) -> Home:
    extra = {"LEDGER_URL": ledger_url, "BROKER_URL": settings.broker, "CHUNK_IMAGES": "200"}
    return Home(settings.home, {ENV_PREFIX + name: value for name, value in extra.items()})


@pytest.fixture
def slim_home(home: Home, tmp_path: Path) -> Home:
    """The same home, for processes without TensorFlow."""
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_NO_TENSORFLOW)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return Home(home.path, home.extra | {"PYTHONPATH": path})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder, random = tmp_path / "photos", np.random.default_rng(1)
    folder.mkdir()
    for number in range(IMAGES):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / f"{number:03}.jpg")
    return folder


@pytest.fixture
def make_model(ledger: Ledger, store: Store, settings: Settings, tmp_path: Path) -> Callable[..., Model]:
    """Return a function that registers a small network, and compiles it if asked to."""

    def make(seed: int, *, compiled: bool) -> Model:
        keras.utils.set_random_seed(seed)
        pixels = keras.Input((32, 32, 3), dtype="uint8")
        answers = keras.layers.Dense(3, "softmax")(
            keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))
        )
        keras.Model(pixels, answers).save(tmp_path / "model.keras")
        model = register_model(
            ledger,
            store,
            (tmp_path / "model.keras").read_bytes(),
            architecture="custom",
            classes=("a", "b", "c"),
            input_spec=InputSpec(32, 32, "RGB"),
            accuracy=None,
            metrics={},
        )
        if compiled:
            compile_model(ledger, store, settings, model)
        return model

    return make


def is_done(home: Home, job: str) -> bool:
    return bool(home.json("status", job)["state"] == "done")


def model_ids(home: Home, job: str) -> set[str]:
    """The models of a job whose images all have a label."""
    found = rows(home.ok("predictions", job, "--format", "csv"))
    assert len(found) == IMAGES
    assert not any(row["error"] for row in found)
    return {row["model"] for row in found}


def claimed(ledger: Ledger) -> bool:
    with ledger.reading() as connection:
        return bool(connection.scalar(sa.select(chunks.c.id).where(chunks.c.state == ChunkState.CLAIMED)))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_slim_worker_serves_compiled_models_and_leaves_the_others(
    home: Home,
    slim_home: Home,
    photos: Path,
    ledger: Ledger,
    make_model: Callable[..., Model],
    tmp_path: Path,
) -> None:
    # Given chunks of a model that only Keras can serve, before those of one for which Keras is the quickest
    other, compiled = make_model(1, compiled=False), make_model(2, compiled=True)
    make_quickest(ledger, compiled, Runtime.KERAS)
    left = home.ok("submit", photos, "--model", other.id).split()[-1]
    job = home.ok("submit", photos, "--model", compiled.id).split()[-1]

    # when a worker without TensorFlow runs, and one of its processes is killed
    log = tmp_path / "slim.log"
    with slim_home.started("worker", log=log) as slim:
        until(partial(claimed, ledger), "a chunk is claimed")
        os.kill(processes_below(slim.pid)[-1], signal.SIGKILL)

        # then the compiled model's job is done without TensorFlow, and the other's chunks are left
        until(partial(is_done, home, job), "the compiled model's job is done")
        assert not any(map(has_tensorflow, processes_below(slim.pid)))
        assert model_ids(home, job) == {compiled.id}
        assert home.json("status", left)["succeeded"] == 0
        time.sleep(3)
        started = log.read_text().count("Task labelmill.classify")
        time.sleep(4)
        # at one look a second, with the log saying once for each process what to do
        assert log.read_text().count("Task labelmill.classify") - started <= 2 * 5
        line = f"chunks of model {other.id} are left to workers with TensorFlow"
        assert 1 <= log.read_text().count(line) <= 2

    # and a worker with TensorFlow classifies them; it imports TensorFlow for no model with a quicker runtime.
    make_quickest(ledger, compiled, Runtime.ONNXRUNTIME)
    loaded = [
        run_python(_LOAD, each.id, **home.extra, LABELMILL_HOME=str(home.path)) for each in (compiled, other)
    ]
    assert [each.stdout for each in loaded] == ["False\n", "True\n"]
    with home.started("worker", log=tmp_path / "ordinary.log"):
        until(partial(is_done, home, left), "the other model's job is done")
    assert model_ids(home, left) == {other.id}


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_damaged_artefact_is_tried_once_by_a_slim_worker_and_not_missed_by_an_ordinary_one(
    home: Home,
    slim_home: Home,
    photos: Path,
    ledger: Ledger,
    store: Store,
    make_model: Callable[..., Model],
    tmp_path: Path,
) -> None:
    # Given a compiled model whose artefact is damaged
    model = make_model(1, compiled=True)
    with ledger.transaction() as connection:
        found = [each for each in list_runtimes(connection, model.id) if each.runtime is Runtime.ONNXRUNTIME]
        save_runtimes(connection, model.id, found)
    store.put(artefact_key(found[0]), b"damaged")
    job = home.ok("submit", photos, "--model", model.id).split()[-1]

    # when a worker without TensorFlow has tried it, then one chunk was released with what to do
    log = tmp_path / "slim.log"
    with slim_home.started("worker", log=log):
        until(lambda: "are left to workers" in log.read_text(), "the chunks are left")
        time.sleep(3)
    assert log.read_text().count(f"released, unavailable: Model {model.id} cannot be served without") == 1

    # and a worker with TensorFlow does the job.
    with home.started("worker", log=tmp_path / "ordinary.log"):
        until(partial(is_done, home, job), "the job is done")
