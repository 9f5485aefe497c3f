"""A model is compiled for other runtimes; workers use the quickest that answers as Keras does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from jobs.errors import Unavailable
from jobs.ledger import Ledger
from jobs.ledger.learning.gate import set_limits
from jobs.ledger.learning.models import find_champion
from jobs.ledger.learning.runs import latest_runs
from jobs.ledger.learning.runtimes import list_runtimes, save_runtimes
from jobs.models.dataset import MNIST
from jobs.models.model import InputSpec, Model
from jobs.models.runtime import EXACT_RUNTIMES, ModelRuntime, Runtime, RuntimeState
from jobs.schema import RunState
from jobs.settings import Settings
from jobs.storage.artefacts import artefact_key
from jobs.storage.registry import register_model, remove_model
from jobs.storage.store import Store
from labelmill.cli import app
from labelmill.client import Client
from tests import training
from tests.digits import Digits
from tests.kerasfile import keras_file
from tests.registering import make_quickest, register_digits
from worker.learning.compiling import compile as compiling
from worker.learning.compiling.compile import compile_if_slow, compile_model
from worker.learning.recipes import Recipe
from worker.predicting import context as worker_context
from worker.predicting.context import WorkerContext
from worker.predicting.networks.keras_network import KerasNetwork
from worker.predicting.networks.litert_network import LiteRtNetwork
from worker.predicting.networks.onnx_network import OnnxNetwork
from worker.predicting.networks.openvino_network import OpenVinoNetwork
from worker.predicting.tensorflow_runtime import keras

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

layers = keras.layers


@pytest.fixture
def model(ledger: Ledger, store: Store, tmp_path: Path) -> Model:
    """Return a model of the layers whose export needs care: constants, random layers, and logits."""
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((24, 24, 3), dtype="uint8"),
            layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[4000.0, 4100.0, 4200.0]),
            layers.RandomFlip(),
            layers.Conv2D(8, 3, strides=2, activation="swish"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(stddev=5.0)),
        ]
    )
    network.save(tmp_path / "model.keras")
    return register_model(
        ledger,
        store,
        (tmp_path / "model.keras").read_bytes(),
        architecture="custom",
        classes=("a", "b", "c", "d"),
        input_spec=InputSpec(24, 24, "RGB"),
        accuracy=None,
        metrics={},
        logits=True,
    )


def test_workers_use_the_quickest_runtime_that_answers_as_keras_does(
    ledger: Ledger, store: Store, settings: Settings, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker process in which Keras serves a model
    monkeypatch.setattr(worker_context, "LOOK_AGAIN_SECONDS", 0.0)
    context = WorkerContext(settings, processes=1)
    pixels = np.random.default_rng(2).integers(0, 256, (40, 24, 24, 3), np.uint8)
    keras_classifier = context.classifier(model.id)
    assert isinstance(keras_classifier.network, KerasNetwork)
    expected = keras_classifier.probabilities(pixels)

    # when the model is compiled, then each runtime gives Keras's answers
    found = compile_model(ledger, store, settings, model)
    assert {(each.runtime, each.state) for each in found} == {
        (each, RuntimeState.PASSED) for each in EXACT_RUNTIMES
    }
    assert all(each.image_microseconds for each in found)

    # and the process uses the quickest
    for runtime, network in (
        (Runtime.ONNXRUNTIME, OnnxNetwork),
        (Runtime.OPENVINO, OpenVinoNetwork),
        (Runtime.LITERT, LiteRtNetwork),
        (Runtime.KERAS, KerasNetwork),
    ):
        make_quickest(ledger, model, runtime)
        with WorkerContext(settings, processes=1) as other:
            assert isinstance(other.classifier(model.id).network, network)
            np.testing.assert_allclose(other.classifier(model.id).probabilities(pixels), expected, atol=1e-4)
    make_quickest(ledger, model, Runtime.ONNXRUNTIME)
    assert isinstance(context.classifier(model.id).network, OnnxNetwork)
    context.close()

    # unless it was told to use another one.
    for runtime, network in ((Runtime.LITERT, LiteRtNetwork), (Runtime.KERAS, KerasNetwork)):
        told = settings.model_copy(update={"runtime": runtime})
        with WorkerContext(told, processes=1) as other:
            assert isinstance(other.classifier(model.id).network, network)

    # If the file is damaged, a new process uses Keras.
    keys = {artefact_key(each) for each in found if each.sha256}
    assert {key.rpartition(".")[2] for key in keys} == {"onnx", "tflite"}
    for key in keys:
        store.put(key, b"damaged")
        (settings.cache_dir / key).unlink()
    with WorkerContext(settings, processes=1) as other:
        assert isinstance(other.classifier(model.id).network, KerasNetwork)

    # The files go with the model.
    remove_model(ledger, store, model)
    assert not any(map(store.exists, keys))


def test_a_lower_precision_is_tried_if_a_person_names_it_and_judged_by_the_gate(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    little_mnist: Digits,
) -> None:
    # Given a trained model, and a gate that no label of few test images decides
    with Client(settings) as client:
        little_mnist.add_to(client, settings.home / "idx")
    _set_limits(ledger, max_calibration_error=None, margin=0.5)
    model = training.train(settings, Recipe(epochs=2, batch_size=32, seed=3)).model
    wanted = [Runtime.OPENVINO_BF16, Runtime.OPENVINO_INT8]
    pixels = np.zeros((2, 28, 28), np.uint8)

    # When it is compiled for lower precisions, then they pass, it is said what they change,
    found = compile_model(ledger, store, settings, model, wanted)
    assert [each.state for each in found] == [RuntimeState.PASSED] * 3, found
    reasons = {each.runtime: each.reason for each in found}
    assert reasons.pop(Runtime.KERAS) is None
    assert all("labels differ from those of Keras" in (reason or "") for reason in reasons.values())
    # workers use them,
    for runtime in wanted:
        make_quickest(ledger, model, runtime)
        with WorkerContext(settings, processes=1) as context:
            classifier = context.classifier(model.id)
            assert isinstance(classifier.network, OpenVinoNetwork)
            np.testing.assert_allclose(classifier.probabilities(pixels).sum(axis=1), 1, atol=0.01)
    # and int8 stores weights of one byte.
    sizes = {each.runtime: each.size_bytes or 0 for each in found}
    assert sizes[Runtime.OPENVINO_INT8] < sizes[Runtime.OPENVINO_BF16] / 2

    # If the gate asks for more than they give, then workers do not use them.
    _set_limits(ledger, max_calibration_error=None, margin=0.5, min_accuracy=0.999)
    found = compile_model(ledger, store, settings, model, wanted)
    assert [each.state for each in found] == [RuntimeState.PASSED, RuntimeState.DIFFERS, RuntimeState.DIFFERS]
    assert all("below the minimum of 0.999" in (each.reason or "") for each in found[1:])


def _set_limits(ledger: Ledger, **limits: float | None) -> None:
    with ledger.transaction() as connection:
        set_limits(connection, MNIST, limits)


@pytest.mark.parametrize("why", ["it is slow", "the champion before it was compiled"])
def test_a_trained_model_is_compiled_after_its_promotion_which_a_failure_leaves_as_it_is(
    why: str,
    settings: Settings,
    ledger: Ledger,
    store: Store,
    tmp_path: Path,
    little_mnist: Digits,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a compilation that fails
    seen: list[tuple[str | None, RunState, list[Runtime]]] = []

    def fail(
        _ledger: Ledger, _store: Store, _settings: Settings, model: Model, runtimes: list[Runtime]
    ) -> None:
        with ledger.reading() as connection:
            champion = find_champion(connection)
            seen.append((champion and champion.id, latest_runs(connection, limit=1)[0].state, runtimes))
        raise Unavailable(f"model {model.id} is heavy")

    monkeypatch.setattr(compiling, "compile_model", fail)
    runtimes: list[Runtime] = []
    if why == "it is slow":
        monkeypatch.setattr(compiling, "MIN_IMAGE_MICROSECONDS", 0.0)
    else:
        runtimes = [Runtime.ONNXRUNTIME]
        network = keras.Sequential([keras.Input((28, 28)), layers.Flatten(), layers.Dense(10, "softmax")])
        network.save(tmp_path / "guesses.keras")
        data = (tmp_path / "guesses.keras").read_bytes()
        champion = register_digits(ledger, store, data, champion=True)
        with ledger.transaction() as connection:
            passed = ModelRuntime(Runtime.ONNXRUNTIME, RuntimeState.PASSED, threads=1, images=1)
            save_runtimes(connection, champion.id, [passed])
    with Client(settings) as client:
        little_mnist.add_to(client, settings.home / "idx")
    # When a model is trained, then its run is done and it is the champion before it is compiled.
    trained = training.train(settings, Recipe(epochs=1, batch_size=32, seed=3))
    assert seen == [(trained.model.id, RunState.DONE, runtimes)], trained.reason
    assert f"{trained.model.id} is heavy" in caplog.text


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemError('no such layer')", "SystemError: no such layer"),
        ("import os; os.kill(os.getpid(), 9)", "its process died of SIGKILL"),
        ("import signal, time; signal.alarm(1); time.sleep(60)", "it took longer than 900 s"),
    ],
)
def test_an_exporter_that_fails_is_a_row_with_its_reason(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    reason: str,
) -> None:
    # Given an exporter that raises, dies or hangs
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        done = program
        if command[-1] == "keras":
            folder = command[-3]
            done = f"open({folder!r} + '/keras.json', 'w').write('{{\"state\": \"passed\", \"images\": 32}}')"
        return real([sys.executable, "-c", done], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(compiling.subprocess, "run", run)
    model = register_digits(ledger, store, keras_file())
    # When a slow model is compiled, then the other runtimes have failed, with the reason
    compile_if_slow(ledger, store, settings, model, 3_000.0)
    with ledger.reading() as connection:
        keras_row, *others = list_runtimes(connection, model.id)
    assert keras_row.state is RuntimeState.PASSED
    assert [(each.state, each.reason) for each in others] == [(RuntimeState.FAILED, reason)] * 3


def test_without_the_packages_keras_is_used_and_a_quick_network_is_not_compiled(
    ledger: Ledger, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an environment without the exporter
    model = register_digits(ledger, store, keras_file())
    monkeypatch.setattr(compiling, "_run_step", lambda *_: "the file has no network")
    monkeypatch.setattr(compiling, "find_spec", lambda _: None)
    # Then a quick network is not compiled
    compile_if_slow(ledger, store, settings, model, 1_900.0)
    with ledger.reading() as connection:
        assert list_runtimes(connection, model.id) == []
    # and a slow one has rows that say what is missing.
    monkeypatch.setattr(compiling, "_run_step", _write_measures)
    compile_if_slow(ledger, store, settings, model, 3_000.0)
    with ledger.reading() as connection:
        found = list_runtimes(connection, model.id)
    assert [each.reason for each in found] == [
        None,
        "ai_edge_litert is not installed",
        *["tf2onnx is not installed"] * 2,
    ]


def _write_measures(folder: Path, *step: str) -> None:
    (folder / f"{step[-1]}.json").write_text('{"state": "passed", "images": 32}')


def test_a_person_names_the_runtimes_to_try(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., Result],
) -> None:
    # Given a quick model, which is compiled only if a person asks for it
    model = register_digits(ledger, store, keras_file())
    monkeypatch.setattr(compiling, "_run_step", _write_measures)

    def recorded() -> set[Runtime]:
        with ledger.reading() as connection:
            return {each.runtime for each in list_runtimes(connection, model.id)}

    # When they name a runtime, then it is tried, and no other
    compile_if_slow(ledger, store, settings, model, 1.0, [Runtime.OPENVINO])
    assert recorded() == {Runtime.KERAS, Runtime.OPENVINO}
    # and if they name Keras, then nothing is left but Keras.
    assert run_command(app, "models", "compile", model.id, "--runtime", "keras").exit_code == 0
    assert recorded() == {Runtime.KERAS}
