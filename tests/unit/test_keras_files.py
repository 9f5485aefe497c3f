"""Files that Keras itself writes: which of them pass the check, and what is built when they are loaded."""

from __future__ import annotations

import importlib
import inspect
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras.src import api_export
from keras.src.applications.convnext import ConvNeXt
from keras.src.ops.operation import Operation

from jobs.errors import ModelRefused
from jobs.models.keras_names import APPLICATION_LAYERS, LAYERS, OPERATIONS
from jobs.models.model_file import check_model_file
from tests.kerasfile import archive, function, layer, members
from worker.predicting.classifier import Classifier
from worker.predicting.networks.keras_network import input_spec_of, load_model
from worker.predicting.tensorflow_runtime import keras

#: Why these layers are not accepted.
REFUSED_LAYERS = {
    "Lambda": "code from the file",
    "TorchModuleWrapper": "unpickles",
    "FlaxLayer": "code of another library",
    "JaxLayer": "code of another library",
    "TFSMLayer": "opens a file",
    "IntegerLookup": "opens a file",
    "StringLookup": "opens a file",
    "TextVectorization": "opens a file",
    "Wrapper": "computes nothing",
}

#: Operations that call a function.
REFUSED_OPERATIONS = {
    "keras.src.ops.core": {
        *("AssociativeScan", "Cond", "ForiLoop", "Map", "Scan", "Switch", "VectorizedMap", "WhileLoop"),
    },
    "keras.src.ops.linalg": {"JVP"},
}


def test_each_layer_of_the_installed_keras_is_accepted_or_refused_for_a_reason() -> None:
    base = keras.layers.Layer
    public = [each for _, each in inspect.getmembers(keras.layers, inspect.isclass) if issubclass(each, base)]
    names = {api_export.get_name_from_symbol(each).rpartition(".")[2] for each in public if each is not base}
    assert names == LAYERS | REFUSED_LAYERS.keys()
    assert not LAYERS & REFUSED_LAYERS.keys()
    for module, classes in APPLICATION_LAYERS.items():
        assert all(issubclass(getattr(importlib.import_module(module), name), base) for name in classes)


@pytest.mark.parametrize("module", OPERATIONS)
def test_each_operation_of_the_installed_keras_is_accepted_or_calls_a_function(module: str) -> None:
    found = {
        name
        for name, each in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if issubclass(each, Operation) and each.__module__ == module
    }
    refused = REFUSED_OPERATIONS.get(module, set())
    assert found == OPERATIONS[module] | refused
    assert not OPERATIONS[module] & refused


# ---- ordinary models ----------------------------------------------------------------------------------


def custom_loss(truth: Any, answer: Any) -> Any:
    return keras.ops.mean(keras.ops.square(truth - answer))


def head(images: Any) -> Any:
    return keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(images))


def functional(body: Callable[[Any], Any]) -> keras.Model:
    images = keras.Input((32, 32, 3))
    return keras.Model(images, body(images))


def compiled(model: keras.Model) -> keras.Model:
    rate = keras.optimizers.schedules.CosineDecay(0.1, 100)
    model.compile(keras.optimizers.Adam(rate), loss=custom_loss)
    return model


def with_nested_compiled_model() -> keras.Model:
    part = compiled(functional(keras.layers.Conv2D(4, 3)))
    return compiled(functional(lambda images: head(part(images))))


def with_compiled_model_in_a_layer() -> keras.Model:
    part = compiled(keras.Sequential([keras.Input((96,)), keras.layers.Dense(4)]))
    rows = keras.layers.TimeDistributed(part)
    return functional(lambda images: head(keras.layers.Reshape((32, 2, 2))(rows(to_rows(images)))))


def to_rows(images: Any) -> Any:
    return keras.layers.Reshape((32, 96))(images)


ORDINARY: dict[str, Callable[[], keras.Model]] = {
    "scaled by operators": lambda: functional(lambda images: head(images / 127.5 - 1)),
    "preprocess_input, tf": lambda: functional(
        lambda images: head(keras.applications.mobilenet.preprocess_input(images))
    ),
    "preprocess_input, caffe": lambda: functional(
        lambda images: head(keras.applications.resnet.preprocess_input(images))
    ),
    "preprocess_input, torch": lambda: functional(
        lambda images: head(keras.applications.densenet.preprocess_input(images))
    ),
    "a slice and a constant": lambda: functional(
        lambda images: head(images[..., ::-1] - np.array([1, 2, 3], np.float32))
    ),
    "RandomErasing": lambda: functional(lambda images: head(keras.layers.RandomErasing()(images))),
    "RandAugment": lambda: functional(lambda images: head(keras.layers.RandAugment()(images))),
    "recurrent": lambda: functional(
        lambda images: keras.layers.Dense(3, activation="softmax")(
            keras.layers.Bidirectional(keras.layers.LSTM(4))(to_rows(images))
        )
    ),
    "attention": lambda: functional(
        lambda images: keras.layers.Dense(3, activation="softmax")(
            keras.ops.mean(keras.layers.MultiHeadAttention(2, 3)(to_rows(images), to_rows(images)), 1)
        )
    ),
    "compiled": lambda: compiled(functional(head)),
    "a nested model, compiled": with_nested_compiled_model,
    "a model in a layer, compiled": with_compiled_model_in_a_layer,
    "ConvNeXt": lambda: ConvNeXt(
        [1, 1, 1, 1], [8, 8, 8, 8], weights=None, classes=3, input_shape=(32, 32, 3)
    ),
    "Inception-ResNet's scaling": lambda: functional(
        lambda images: head(
            importlib.import_module("keras.src.applications.inception_resnet_v2").CustomScaleLayer(0.1)(
                [images, images]
            )
        )
    ),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_model_passes_and_answers_as_before(name: str, tmp_path: Path) -> None:
    # given a file of Keras's
    model, path = ORDINARY[name](), tmp_path / "model.keras"
    model.save(path)

    # when it is checked and loaded
    check_model_file(path.read_bytes())
    loaded = load_model(path)

    # then no part of it is compiled, nothing else is left, and it answers as before
    assert not any(getattr(part, "compiled", False) for part in loaded._flatten_layers())
    assert list(tmp_path.iterdir()) == [path]
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    answers, expected = (each(images, training=False).numpy() for each in (loaded, model))
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    classifier = Classifier.of_keras(loaded, "abc", input_spec_of(loaded))
    assert set(classifier.predict(images).class_index.tolist()) <= {-1, 0, 1, 2}


# ---- hostile models -----------------------------------------------------------------------------------


def config_of(model: keras.Model) -> dict[str, Any]:
    config: dict[str, Any] = keras.saving.serialize_keras_object(model)
    return config


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_nothing_in_a_compile_configuration_is_built(depth: int, tmp_path: Path) -> None:
    # given a file whose compile configuration, at some depth, would leave a trace when it is built
    trace = tmp_path / "trace"

    def leave_trace(truth: Any, answer: Any) -> Any:
        trace.touch()
        return custom_loss(truth, answer)

    model = functional(head)
    for _ in range(depth):
        inner = model
        model = functional(lambda images, inner=inner: inner(images))
    whole = model
    for _ in range(depth):
        model = model.layers[1]
    model.compile(loss=leave_trace, optimizer="sgd")
    good = tmp_path / "good.keras"
    whole.save(good)

    # and which names a loader of files
    path = tmp_path / "evil.keras"
    config = config_of(whole)
    part = config
    for _ in range(depth):
        part = part["config"]["layers"][1]
    assert part["compile_config"]
    part["compile_config"] = {
        "optimizer": layer("keras.layers", "TFSMLayer", filepath=str(trace)),
        "loss": function("keras.utils", "get_file"),
    }
    path.write_bytes(archive(members(config, weights=weights_of(good))))

    # when it is loaded as it is, then Keras objects, unless only the outermost model was compiled
    if depth:
        with pytest.raises(Exception, match=r"TFSMLayer|get_file"):
            keras.saving.load_model(path, compile=False)

    # when it is checked and loaded here, then only the network is built
    check_model_file(path.read_bytes())
    loaded = load_model(path)
    answers, expected = (each(np.ones((1, 32, 32, 3))).numpy() for each in (loaded, whole))
    np.testing.assert_allclose(answers, expected)
    assert not trace.exists()


def weights_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as saved:
        return saved.read("model.weights.h5")


def double(images: Any) -> Any:
    return images * 2


class Mine(keras.layers.Layer):
    """A layer of the author's own."""

    def call(self, images: Any) -> Any:
        return images * 2


@pytest.mark.parametrize(
    "made",
    [
        lambda images: keras.layers.Lambda(lambda x: x * 2)(images),
        Mine(),
        keras.layers.Activation(double),
        lambda images: keras.ops.vectorized_map(keras.ops.relu, images),
        lambda images: keras.ops.map(keras.ops.relu, images),
        keras.layers.Activation(Mine()),
    ],
    ids=["Lambda", "a layer", "a function", "vectorized_map", "map", "a layer as an argument"],
)
def test_code_of_the_authors_own_is_refused(made: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    functional(lambda images: head(made(images))).save(path)
    with pytest.raises(ModelRefused, match="may be loaded"):
        check_model_file(path.read_bytes())
