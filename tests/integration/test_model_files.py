"""Dangerous model files, made by Keras and by hand, are refused before they are parsed.

This holds when a model is registered, and when a worker fetches it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from jobs.errors import ModelRefused
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.models import add_model, get_model
from jobs.models.model import MNIST_INPUT, Model
from jobs.models.model_file import check_model_file
from jobs.settings import Settings
from jobs.storage.registry import fetch_model, model_key
from jobs.storage.store import Store
from tests.harness import Harness, digits
from tests.kerasfile import archive
from tests.registering import register_digits

# The database does not matter here.
pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Return a path at which a file exists once a model's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def lambda_file(tmp_path: Path, trap: Path) -> bytes:
    """Return a model with a layer of Python code, saved by Keras."""
    from worker.predicting.tensorflow_runtime import keras

    spring = str(trap)
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Flatten(),
            keras.layers.Lambda(lambda x: (Path(spring).touch(), x)[1]),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    trap.unlink()  # building the model runs its code too
    path = tmp_path / "lambda.keras"
    model.save(path)
    return path.read_bytes()


# ---- registering --------------------------------------------------------------------------------------


def test_a_model_with_code_in_it_is_not_registered(
    ledger: Ledger, store: Store, lambda_file: bytes, trap: Path
) -> None:
    with pytest.raises(ModelRefused, match=r"names keras\.layers\.Lambda"):
        register_digits(ledger, store, lambda_file)
    assert not trap.exists()
    assert not (Path(store.folder or "") / "models").exists()


# ---- in a worker --------------------------------------------------------------------------------------


def smuggle(ledger: Ledger, store: Store, data: bytes) -> Model:
    """Register a model without our checks, like an attacker who can write to the ledger and the store."""
    sha256 = hashlib.sha256(data).hexdigest()
    store.put(model_key(sha256), data)
    with ledger.transaction() as connection:
        model_id = add_model(
            connection,
            model_id=new_id(),
            architecture="mlp",
            sha256=sha256,
            size_bytes=len(data),
            classes=tuple("0123456789"),
            input_spec=MNIST_INPUT,
            accuracy=None,
            metrics={},
        )
        return get_model(connection, model_id)


def assert_refused_and_alive(harness: Harness, evil: bytes, reason: str) -> None:
    """Check that a job with the evil file fails for this reason, and the same worker still classifies."""
    refused = harness.submit(digits(1), model=smuggle(harness.ledger, harness.store, evil))
    done = harness.submit(digits(1))

    harness.classify_all()

    status = harness.status(refused)
    assert status.state == "failed"
    assert reason in (status.error or "")
    assert "\n" not in (status.error or "")
    assert harness.status(done).state == "done"


def test_a_worker_does_not_load_a_model_with_code_in_it(
    keras_harness: Harness, lambda_file: bytes, trap: Path
) -> None:
    reason = "is refused. Its config names keras.layers.Lambda"
    assert_refused_and_alive(keras_harness, lambda_file, reason)
    assert not trap.exists()


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


@pytest.mark.parametrize("way", ["external link", "soft link", "external storage", "virtual"])
def test_a_worker_reads_no_other_file_for_the_weights(
    keras_harness: Harness, model_file: bytes, tmp_path: Path, way: str
) -> None:
    # given weights that refer to another file on the worker's machine
    evil = with_weights_elsewhere(model_file, tmp_path, way)

    # when a worker loads them, then Keras refuses, although the archive itself passes our check
    check_model_file(evil)
    assert_refused_and_alive(keras_harness, evil, "could not be loaded")


def with_weights_elsewhere(data: bytes, folder: Path, way: str) -> bytes:
    contents = members_of(data)
    path = folder / "model.weights.h5"
    path.write_bytes(contents["model.weights.h5"])
    with h5py.File(path, "r+") as file:
        name = "layers/dense/vars/0"
        shape, dtype = file[name].shape, file[name].dtype
        with h5py.File(folder / "secret.h5", "w") as secret:
            secret["weights"] = np.ones(shape, dtype)
        (folder / "secret").write_bytes(bytes(int(np.prod(shape)) * dtype.itemsize))
        del file[name]
        if way == "external link":
            file[name] = h5py.ExternalLink(folder / "secret.h5", "weights")
        elif way == "soft link":
            file[name] = h5py.SoftLink("/layers/dense/vars/1")
        elif way == "external storage":
            file.create_dataset(name, shape, dtype, external=str(folder / "secret"))
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(folder / "secret.h5", "weights", shape)
            file.create_virtual_dataset(name, layout)
    return archive(contents | {"model.weights.h5": path.read_bytes()})


def test_a_copy_in_the_cache_is_looked_at_like_any_other(
    ledger: Ledger, store: Store, settings: Settings, lambda_file: bytes
) -> None:
    # given a machine that already has the file in its cache
    model = smuggle(ledger, store, lambda_file)
    copy = settings.cache_dir / "models" / f"{model.sha256}.keras"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(lambda_file)

    # when the model is fetched, then it is refused all the same
    with pytest.raises(ModelRefused, match=r"names keras\.layers\.Lambda"):
        fetch_model(store, model, settings.cache_dir)


def test_a_file_that_grew_without_end_is_not_read_to_its_end(
    ledger: Ledger, store: Store, settings: Settings, model_file: bytes
) -> None:
    # given a registered model whose file was replaced by a terabyte
    model = register_digits(ledger, store, model_file)
    with (Path(store.folder or "") / model_key(model.sha256)).open("r+b") as file:
        file.truncate(2**40)

    # when it is fetched, then it is refused at once
    with pytest.raises(ModelRefused, match="SHA-256 differs"):
        fetch_model(store, model, settings.cache_dir)
