"""Training and evaluation: a small real run, what it reports, what it leaves on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.model import MNIST_INPUT, InputSpec
from worker.learning import mnist
from worker.learning.evaluation import evaluate
from worker.learning.training import CLASSES, EpochResult, Recipe, build, save, train
from worker.predicting.classifier import Classifier
from worker.predicting.runtime import keras

RECIPE = Recipe(epochs=2, batch_size=32, seed=3)


@pytest.fixture(scope="session")
def data(little_mnist: mnist.Mnist) -> mnist.Mnist:
    return little_mnist


@pytest.fixture(scope="module")
def trained(data: mnist.Mnist) -> tuple[keras.Model, list[EpochResult], list[tuple[int, int, int]]]:
    epochs: list[EpochResult] = []
    batches: list[tuple[int, int, int]] = []
    model = train(
        data,
        RECIPE,
        on_batch=lambda epoch, done, total: batches.append((epoch, done, total)),
        on_epoch=epochs.append,
    )
    return model, epochs, batches


def test_a_short_training_learns_and_says_how_it_goes(trained) -> None:  # type: ignore[no-untyped-def]
    # Given two epochs over 800 digits, 32 at a time
    _, epochs, batches = trained
    # Then each step and each epoch was reported, in order
    assert batches == [(epoch, step, 25) for epoch in (1, 2) for step in range(1, 26)]
    assert [result.epoch for result in epochs] == [1, 2]
    # and the model learned: guessing gets one in ten.
    assert epochs[1].loss < epochs[0].loss
    assert epochs[1].val_accuracy > 0.7
    assert all(result.seconds > 0 for result in epochs)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(data: mnist.Mnist, trained) -> None:  # type: ignore[no-untyped-def]
    model, epochs, _ = trained
    again: list[EpochResult] = []
    # When it is trained once more, this time without following the steps
    repeated = train(data, RECIPE, on_epoch=again.append)
    # Then it is the same to the last bit
    assert [replace(result, seconds=0) for result in again] == [
        replace(result, seconds=0) for result in epochs
    ]
    for one, other in zip(model.get_weights(), repeated.get_weights(), strict=True):
        assert (one == other).all()
    # and with another seed it is not.
    other_seed = train(data, replace(RECIPE, seed=4, epochs=1))
    assert not (other_seed.get_weights()[0] == model.get_weights()[0]).all()


def test_the_network_is_the_one_described_with_its_scaling_inside() -> None:
    # Given the network
    model = build("mlp", MNIST_INPUT)
    # Then it is 784-512-512-10, takes bytes and scales them itself
    assert model.input_shape == (None, 28, 28)
    assert model.inputs[0].dtype == "uint8"
    assert [type(layer).__name__ for layer in model.layers] == [
        "Rescaling",
        "Flatten",
        "Dense",
        "Dense",
        "Dense",
    ]
    assert model.count_params() == 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    white = np.full((1, 28, 28), 255, np.uint8)
    assert float(model.layers[0](white).numpy().max()) == pytest.approx(1.0)
    # and its answers are probabilities.
    assert model.predict(white, verbose=0).sum() == pytest.approx(1.0, abs=1e-5)


def test_an_unknown_architecture_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'cnn'"):
        build("cnn", MNIST_INPUT)


def test_training_goes_through_the_conversion_of_its_spec(data: mnist.Mnist) -> None:
    # Given a spec of another size, when a model is trained for it
    spec = InputSpec(width=10, height=12)
    model = train(data, replace(RECIPE, epochs=1), spec)
    # Then it takes that size.
    assert model.input_shape == (None, 12, 10)


def test_whoever_follows_a_training_can_end_it(data: mnist.Mnist) -> None:
    class Enough(Exception):
        pass

    def follow(_epoch: int, done: int, _total: int) -> None:
        if done == 3:
            raise Enough

    with pytest.raises(Enough):
        train(data, RECIPE, on_batch=follow)


def test_a_saved_model_is_evaluated_as_it_will_be_served(data: mnist.Mnist, trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, epochs, _ = trained
    # Given the trained model, saved and loaded
    save(model, tmp_path / "model.keras")
    classifier = Classifier.load(tmp_path / "model.keras", CLASSES, MNIST_INPUT)
    # When it is evaluated
    evaluation = evaluate(classifier, data.test_images, data.test_labels)
    # Then it is as good as it was at the end of its training, and the classes add up.
    assert evaluation.accuracy == pytest.approx(epochs[-1].val_accuracy, abs=1e-6)
    assert evaluation.total == sum(evaluation.total_by_class.values()) == 300
    assert evaluation.correct == sum(evaluation.correct_by_class.values())
    assert evaluation.accuracy == evaluation.correct / evaluation.total
    assert tuple(evaluation.total_by_class) == CLASSES
    assert evaluation.total_by_class["7"] == int((data.test_labels == 7).sum())
    assert evaluation.to_json()["correct"] == evaluation.correct


def test_an_image_without_a_sound_answer_counts_as_wrong(data: mnist.Mnist) -> None:
    model = build("mlp", MNIST_INPUT)
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    evaluation = evaluate(Classifier(model, CLASSES, MNIST_INPUT), data.test_images, data.test_labels)
    assert evaluation.accuracy == 0
    assert evaluation.total == 300


def test_there_is_nothing_to_evaluate_without_images_or_with_foreign_labels(data: mnist.Mnist) -> None:
    classifier = Classifier(build("mlp", MNIST_INPUT), CLASSES, MNIST_INPUT)
    with pytest.raises(ValueError, match="nothing to compare"):
        evaluate(classifier, data.test_images[:0], data.test_labels[:0])
    with pytest.raises(ValueError, match="nothing to compare"):
        evaluate(classifier, data.test_images, data.test_labels[:5])
    with pytest.raises(ValueError, match="not one of the model's 10 classes"):
        evaluate(classifier, data.test_images[:1], np.array([10], np.uint8))


def test_a_model_is_saved_whole_or_not_at_all(trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, _, _ = trained
    path = tmp_path / "model.keras"
    # Given a model already there
    save(model, path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    # When the next save fails: its folder is gone, or what it is to write cannot be written
    with pytest.raises(OSError, match="elsewhere"):
        save(model, tmp_path / "elsewhere" / "model.keras")
    with pytest.raises(AttributeError):
        save(None, path)
    # Then the old one is untouched, and nothing half-written lies beside it.
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
