"""Training: small real runs, what they report, and the model file they write."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.errors import TrainingDiverged
from jobs.models.model import MNIST_INPUT
from tests.digits import Digits
from worker.learning import fit, networks, steps
from worker.learning.checkpoint import Checkpoint
from worker.learning.data import Data, Labelled
from worker.learning.epochs import EpochResult
from worker.learning.fit import save, train
from worker.learning.learnt_images import MAX_CLASS_WEIGHT, class_weights, learnt_images
from worker.learning.networks import build, make_training_copy, precision
from worker.learning.recipes import Augmentation, Recipe
from worker.learning.steps import distortion_share, make_train_step
from worker.predicting import tensorflow_runtime
from worker.predicting.tensorflow_runtime import keras, tf

RECIPE = Recipe(epochs=2, batch_size=32, seed=3)
DISTORTED = Augmentation(shift=1, rotation=10, zoom=0.1, at_the_end=0.5)


@pytest.fixture(scope="session")
def data(little_mnist: Digits) -> Data:
    return little_mnist.prepared()


def learning(data: Data, rows: Any) -> Data:
    """Return the data with only these training images, and validation images of their classes."""
    train = taken(data.train, rows)
    known = np.isin(data.validation.labels, train.labels)
    return replace(data, train=train, validation=taken(data.validation, known))


def taken(images: Labelled, rows: Any) -> Labelled:
    """Return only the images in these rows."""
    pictures = tuple(np.array(images.pictures)[rows])
    return Labelled(images.images[rows], images.labels[rows], pictures)


@pytest.fixture(scope="module")
def trained(data: Data) -> tuple[keras.Model, list[EpochResult], list[int]]:
    epochs: list[EpochResult] = []
    batches: list[int] = []
    model = train(
        data,
        RECIPE,
        on_batch=lambda: batches.append(len(epochs) + 1),
        on_epoch=epochs.append,
    )
    return model, epochs, batches


def test_a_short_training_learns_and_says_how_it_goes(trained) -> None:  # type: ignore[no-untyped-def]
    # Given two epochs over 700 digits, in batches of 32
    _, epochs, batches = trained
    # Then each step and each epoch is reported, in order
    assert batches == [1] * 22 + [2] * 22
    assert [result.epoch for result in epochs] == [1, 2]
    # and the model has learned: guessing gets one in ten right.
    assert epochs[1].loss < epochs[0].loss
    assert epochs[1].val_accuracy > 0.7
    assert all(result.seconds > 0 for result in epochs)


@pytest.mark.parametrize(
    ("images", "sizes"), [(97, {25: 1, 24: 3}), (128, {32: 4}), (31, {31: 1}), (33, {17: 1, 16: 1})]
)
def test_no_batch_is_a_remainder(data: Data, images: int, sizes: dict[int, int]) -> None:
    # Given that many images, in batches of about 32
    learnt = learnt_images(learning(data, slice(images)), RECIPE)
    batches = learnt.batches(sum(sizes.values()), np.random.default_rng(1))
    # Then all of them are used, in batches whose sizes differ by at most one.
    assert Counter(map(len, batches)) == sizes
    assert sorted(np.concatenate(batches)) == list(range(images))


def test_the_same_seed_gives_the_same_model_and_another_seed_another(data: Data, trained) -> None:  # type: ignore[no-untyped-def]
    model, epochs, _ = trained
    again: list[EpochResult] = []
    # When the model is trained again, without reporting the steps
    repeated = train(data, RECIPE, on_epoch=again.append)
    # Then it is the same to the last bit
    assert [replace(result, seconds=0) for result in again] == [
        replace(result, seconds=0) for result in epochs
    ]
    for one, other in zip(model.get_weights(), repeated.get_weights(), strict=True):
        assert (one == other).all()
    # and with another seed it differs.
    other_seed = train(data, replace(RECIPE, seed=4, epochs=1))
    assert not (other_seed.get_weights()[0] == model.get_weights()[0]).all()


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, epochs=4),
        Recipe("cnn", epochs=4, batch_size=64, seed=3, averaging=0.9, patience=2, augmentation=DISTORTED),
    ],
    ids=["mlp", "cnn"],
)
def test_a_resumed_training_makes_the_same_model(
    data: Data, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", 0.0)
    # Given a training that is stopped after its second epoch
    few = learning(data, slice(200))
    epochs: list[EpochResult] = []
    whole = train(few, recipe, on_epoch=epochs.append)
    last: Checkpoint | None = None

    def stop(checkpoint: Checkpoint) -> None:
        nonlocal last
        last = checkpoint
        if len(checkpoint.epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(few, recipe, on_checkpoint=stop)

    # when another one resumes it, then epochs and weights are those of a training in one piece.
    continued: list[EpochResult] = []
    steps: list[None] = []
    model = train(
        few, recipe, on_epoch=continued.append, on_batch=lambda: steps.append(None), resume_from=last
    )
    assert [replace(each, seconds=0) for each in continued] == [replace(each, seconds=0) for each in epochs]
    assert len(steps) == 2 * -(-200 // recipe.batch_size)
    for one, other in zip(model.get_weights(), whole.get_weights(), strict=True):
        assert (one == other).all()


def test_convolutions_learn_as_well(data: Data) -> None:
    # Given the convolutional network, for data of three classes
    three = replace(learning(data, data.train.labels < 3), classes=("zero", "one", "two"))
    # When it is trained briefly, with averaged weights
    epochs: list[EpochResult] = []
    recipe = Recipe(architecture="cnn", epochs=6, batch_size=16, averaging=0.9, seed=3)
    model = train(three, recipe, on_epoch=epochs.append)
    # Then it is far better than guessing, and has an output for each class.
    assert epochs[-1].val_accuracy > 0.8
    assert model.output_shape == (None, 3)

    # It uses only Keras's own layers, so that its file can be loaded without our code.
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}


def test_normalisation_trains_as_keras_has_it() -> None:
    # Given Keras's batch normalisation, and ours, which trains faster
    inputs = keras.Input((5, 6, 4))
    plain = keras.Model(inputs, keras.layers.BatchNormalization(momentum=0.9)(inputs))
    dice = np.random.default_rng(1)
    plain.set_weights([dice.uniform(0.5, 2, 4) for _ in plain.get_weights()])
    quick = make_training_copy(plain, "float32")
    assert type(quick.layers[1]) is not type(plain.layers[1])
    # When both get the same batch
    seen = tf.constant(dice.normal(3, 2, (32, 5, 6, 4)).astype(np.float32))
    weigh = dice.normal(size=(32, 5, 6, 4)).astype(np.float32)
    learnt = []
    for model in (plain, quick):
        with tf.GradientTape() as tape:
            tape.watch(seen)
            outputs = model(seen, training=True)
            loss = tf.reduce_sum(outputs**2 * weigh)
        gradients = tape.gradient(loss, [seen, *model.trainable_variables])
        learnt.append([outputs, *gradients, *model.get_weights(), model(seen, training=False)])
    # Then outputs, gradients and later answers agree. TensorFlow uses the sample variance of 960 values,
    # which is a thousandth larger.
    for one, other in zip(*learnt, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=2e-3)


def test_convolutions_are_computed_in_half_the_bytes_where_that_is_faster(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(architecture="cnn", epochs=1, batch_size=16, seed=3)
    few = learning(data, slice(64))
    weights = {}
    for does in (True, False):
        # Given a processor that multiplies bfloat16, or one that does not
        monkeypatch.setattr(networks, "multiplies_bfloat16", lambda does=does: does)
        assert precision("cnn") == ("bfloat16" if does else "float32")
        assert precision("mlp") == "float32"
        # When the same training is done
        model = train(few, recipe)
        # Then the model is float32 throughout
        assert {layer.compute_dtype for layer in model.layers} == {"float32"}
        assert {weight.dtype for weight in model.weights} == {"float32"}
        weights[does] = model.layers[-1].get_weights()[0]
    # and only its computation had another precision.
    assert 0 < np.abs(weights[True] - weights[False]).max() < 0.05


def test_only_a_processor_that_multiplies_bfloat16_is_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tmp_path / "cpuinfo"
    monkeypatch.setattr(tensorflow_runtime, "_CPU_INFO", flags)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _kind: [])
    assert not tensorflow_runtime.multiplies_bfloat16()  # the file does not exist, as outside Linux
    flags.write_text("flags\t\t: fpu avx512_vnni amx_tile amx_int8\n")
    assert not tensorflow_runtime.multiplies_bfloat16()
    flags.write_text("flags\t\t: fpu avx512_vnni amx_bf16 amx_tile\n")
    assert tensorflow_runtime.multiplies_bfloat16()
    flags.write_text("flags\t\t: fpu avx512_bf16\n")
    assert tensorflow_runtime.multiplies_bfloat16()
    # and with a GPU the answer is no
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _kind: ["a GPU"])
    assert not tensorflow_runtime.multiplies_bfloat16()


def test_validation_and_test_images_are_never_learnt_from(data: Data) -> None:
    # Given two trainings whose validation images have different labels, one of them without test images
    recipe = replace(RECIPE, epochs=1)
    others = replace(data.validation, labels=(data.validation.labels + 1) % 10)
    changed = replace(data, validation=others, test=taken(data.test, slice(0)))
    one, other = (train(each, recipe) for each in (data, changed))
    # Then their models are the same.
    for weights, same in zip(one.get_weights(), other.get_weights(), strict=True):
        assert (weights == same).all()


def test_a_training_that_diverges_ends_and_says_so(data: Data) -> None:
    # Given a learning rate that makes the weights overflow after a few steps
    epochs: list[EpochResult] = []
    recipe = replace(RECIPE, learning_rate=1e30)
    # When a model is trained, then training ends with the first epoch, which is not reported.
    with pytest.raises(TrainingDiverged, match="its loss is not finite after epoch 1"):
        train(data, recipe, on_epoch=epochs.append)
    assert epochs == []


def test_weights_that_the_last_step_spoils_are_noticed(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a training whose loss stays finite, and whose final weights answer NaN
    monkeypatch.setattr(fit, "_validate", lambda *_: (float("nan"), 0.1))
    # When a model is trained, then that is noticed too.
    with pytest.raises(TrainingDiverged):
        train(data, replace(RECIPE, epochs=1))


def test_without_validation_images_there_is_nothing_to_say_of_them(data: Data) -> None:
    epochs: list[EpochResult] = []
    train(
        replace(data, validation=taken(data.validation, slice(0))),
        replace(RECIPE, epochs=1),
        on_epoch=epochs.append,
    )
    assert np.isnan([epochs[0].val_loss, epochs[0].val_accuracy]).all()


def test_averaged_weights_are_the_mean_of_those_on_the_way(data: Data) -> None:
    # Given a network, and a second one for averaged weights that keeps a tenth at each step
    recipe = replace(RECIPE, averaging=0.1)
    model, averaged = build("mlp", MNIST_INPUT, 10), build("mlp", MNIST_INPUT, 10)
    averaged.set_weights(model.get_weights())
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.build(model.trainable_variables)
    step = make_train_step(model, averaged, optimizer, recipe, MNIST_INPUT)
    # When the first is trained for three steps, then the second has the running mean after each.
    expected = model.get_weights()[1:]
    pixels = data.train.take(slice(32))
    labels = data.train.labels[:32].astype(np.int32)
    for number in range(3):
        step(pixels, labels, np.array((1, number), np.int32), np.float32(1.0))
        for place, weights in enumerate(model.get_weights()[1:]):
            expected[place] = 0.1 * expected[place] + 0.9 * weights
            assert averaged.get_weights()[1:][place] == pytest.approx(expected[place], abs=1e-6)


def test_the_last_fifth_of_a_training_is_distorted_less() -> None:
    recipe = replace(RECIPE, augmentation=Augmentation(rotation=10, at_the_end=0.5))
    shares = [float(distortion_share(recipe, done / 100)) for done in range(100)]
    assert shares == [1.0] * 80 + [0.5] * 20
    assert distortion_share(replace(RECIPE, augmentation=None), 0.9) == 1


def test_a_rare_class_weighs_more_but_not_without_limit() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10]).astype(np.int32)
    weights = class_weights(labels, 4, MAX_CLASS_WEIGHT)
    # A tenth as many images weigh ten times as much each, and a hundredth as many no more than that
    assert weights[1] / weights[0] == pytest.approx(10)
    assert weights[2] / weights[0] == pytest.approx(MAX_CLASS_WEIGHT)
    # and an image weighs 1 on average.
    assert weights[labels].mean() == pytest.approx(1)
    # Without a limit, all images of a class weigh as much as those of any other
    weights = class_weights(labels, 4, math.inf)
    assert np.bincount(labels, weights[labels]) == pytest.approx(1000 / 3)


def test_a_fine_tuning_weighs_a_rare_class_without_limit(data: Data) -> None:
    labels = np.append(1, np.zeros(len(data.train) - 1)).astype(data.train.labels.dtype)
    rare = replace(data, train=replace(data.train, labels=labels))
    recipe = replace(RECIPE, class_weights=True)
    for architecture, most in ((recipe.architecture, MAX_CLASS_WEIGHT), ("finetune", len(labels) - 1)):
        weights = learnt_images(rare, replace(recipe, architecture=architecture)).class_weights
        assert weights is not None
        assert weights[1] / weights[0] == pytest.approx(most)


def test_the_loss_of_a_training_is_weighted(data: Data) -> None:
    recipe = replace(RECIPE, epochs=1)
    plain, weighted = (train(data, each) for each in (recipe, replace(recipe, class_weights=True)))
    assert (plain.get_weights()[0] != weighted.get_weights()[0]).any()


def test_the_latest_best_epoch_counts_and_the_training_ends_when_none_is_better(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a training whose second and third epochs are the best of all, and its fifth after the warm-up
    accuracies = [0.1, 0.9, 0.9, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1]
    after_each: list[Any] = []

    def validate(model: keras.Model, *_: Any) -> tuple[float, float]:
        after_each.append(model.get_weights())
        return 1.0, accuracies[len(after_each) - 1]

    monkeypatch.setattr(fit, "_validate", validate)
    # When it may go on for three epochs without a better one, but not before the warm-up of four is over
    model = train(data, replace(RECIPE, epochs=9, patience=3, warm_up=4 / 9))
    # Then it ends after the seventh, and the model is that of the third: of two equal ones, the later.
    assert len(after_each) == 7
    for weights, best in zip(model.get_weights(), after_each[2], strict=True):
        assert (weights == best).all()


def test_a_time_budget_ends_the_training_with_a_low_learning_rate(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a clock on which each step takes a second, and which other threads do not see
    now = itertools.count()
    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    rates: list[float] = []
    made = keras.optimizers.AdamW

    def watched(rate: Any, **options: Any) -> Any:
        optimizer = made(rate, **options)
        watched.rate = rate  # type: ignore[attr-defined]
        return optimizer

    monkeypatch.setattr(keras.optimizers, "AdamW", watched)
    epochs: list[EpochResult] = []
    left: list[float] = []
    # When the recipe wants a thousand epochs and has a minute
    train(
        data,
        replace(RECIPE, epochs=1_000, max_minutes=1),
        on_batch=lambda: rates.append(float(watched.rate(0))),  # type: ignore[attr-defined]
        on_estimate=left.append,
        on_epoch=epochs.append,
    )
    # Then it ends after about as many steps, and the rate has risen and fallen to almost 0.
    assert 40 < len(rates) < 62
    assert max(rates) > 0.9 * RECIPE.learning_rate
    assert rates[-1] < 0.02 * RECIPE.learning_rate
    assert len(epochs) == 3
    # And after ten seconds, it has said how long it takes, and after each epoch again
    assert len(left) in (3, 4)
    assert 40 < left[0] < 50
    assert left == sorted(left, reverse=True)


def test_the_first_steps_say_how_long_a_training_takes(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a training whose steps are measured for a moment
    monkeypatch.setattr(steps, "MEASURED_SECONDS", 0.0)
    left: list[float] = []
    # When it has no limit
    train(data, replace(RECIPE, epochs=3), on_estimate=left.append)
    # Then the estimate comes within the first epoch and ends at 0
    assert len(left) == 1 + 3
    assert 0 < left[0] < 60
    assert left[-1] == 0.0


def test_however_short_the_time_one_step_is_taken(data: Data) -> None:
    epochs: list[EpochResult] = []
    train(data, replace(RECIPE, max_minutes=1e-9), on_epoch=epochs.append)
    assert len(epochs) == 1


def test_fine_tuning_begins_with_the_trained_weights_and_keeps_only_a_gain(data: Data, trained: Any) -> None:
    model, epochs, _ = trained
    tuned: list[EpochResult] = []
    recipe = replace(RECIPE, architecture="finetune", epochs=1, learning_rate=1e-4, patience=8)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    train(data, recipe, start=copy, on_epoch=tuned.append)
    assert tuned[0].val_accuracy >= epochs[-1].val_accuracy - 0.05
    # If an epoch spoils it, as with wrong labels, then it stays as it was
    copy.set_weights(model.get_weights())
    wrong = replace(data, train=replace(data.train, labels=(data.train.labels + 1) % 10))
    kept = train(wrong, replace(recipe, learning_rate=0.01), start=copy, on_epoch=tuned.append)
    assert tuned[1].val_accuracy < 0.5
    assert all(map(np.array_equal, kept.get_weights(), model.get_weights()))


def test_traces_of_many_shapes_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the handler of TensorFlow's warnings
    told: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    monkeypatch.setattr(tf.get_logger(), "handlers", [handler])

    # When a function is traced for each of many values, and there is another warning
    function = tf.function(lambda number: number + 1)
    for number in range(8):
        function(number)
    tf.get_logger().warning("something else")

    # Then only the other one is told
    assert told == ["something else"]


def test_a_model_is_saved_whole_or_not_at_all(trained, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, _, _ = trained
    path = tmp_path / "model.keras"
    # Given a saved model
    save(model, path)
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    # When a save fails, because the folder is missing or the model cannot be written
    with pytest.raises(OSError, match="elsewhere"):
        save(model, tmp_path / "elsewhere" / "model.keras")
    with pytest.raises(AttributeError):
        save(None, path)
    # Then the file is unchanged, and no partial file is beside it.
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
