"""The networks: they fit images of every size, and a trained one can be continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.errors import ModelRefused
from jobs.models.model import MNIST_INPUT, InputSpec
from worker.learning.fit import save
from worker.learning.networks import Start, build, freeze, make_training_copy
from worker.predicting.classifier import Classifier
from worker.predicting.tensorflow_runtime import keras, tf

layers = keras.layers


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(1, 1, "L"), (8, 8, "RGB"), (17, 31, "L"), (28, 28, "RGB"), (64, 64, "RGB"), (300, 200, "RGB")],
)
def test_a_residual_network_fits_images_of_every_size(
    width: int, height: int, mode: str, tmp_path: Path
) -> None:
    # Given an input of this size, when a network is built for it and stored
    spec = InputSpec(width, height, "L" if mode == "L" else "RGB")
    network = build("cnn", spec, 3)
    save(network, tmp_path / "model.keras")
    # Then it is served as any other model, and all its layers are Keras's own
    classifier = Classifier.load(tmp_path / "model.keras", ("a", "b", "c"), spec)
    pixels = np.random.default_rng(1).integers(0, 256, (2, *spec.shape), np.uint8)
    assert (classifier.predict(pixels).class_index >= 0).all()
    assert {type(layer).__module__.split(".")[0] for layer in network.layers} == {"keras"}


@pytest.mark.parametrize(
    ("side", "last_map"),
    [(16, (8, 8, 64)), (32, (8, 8, 128)), (48, (6, 6, 256)), (96, (6, 6, 256)), (224, (7, 7, 128))],
)
def test_a_larger_image_makes_the_residual_network_deeper_and_not_much_slower(
    side: int, last_map: tuple[int, ...]
) -> None:
    network = build("cnn", InputSpec(side, side, "RGB"), 3)
    pool = next(each for each in network.layers if isinstance(each, layers.GlobalAveragePooling2D))
    assert pool.input.shape[1:] == last_map


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_residual_network_has_a_training_copy(kind: str) -> None:
    # Given a residual network and its training copy
    spec = InputSpec(32, 32, "RGB")
    plain = build("cnn", spec, 4)
    quick = make_training_copy(plain, kind)
    pixels = np.random.default_rng(1).integers(0, 256, (8, *spec.shape), np.uint8)
    # Then both answer the same, as far as the precision allows, and the copy has gradients for all weights.
    tolerance = 1e-5 if kind == "float32" else 0.05
    assert np.allclose(plain(pixels), quick(pixels), atol=tolerance)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(quick(pixels, training=True)[:, 0])
    assert all(each is not None for each in tape.gradient(loss, quick.trainable_variables))


def test_normalisation_that_is_not_of_pictures_is_trained_as_it_is() -> None:
    # Given a network that normalises a vector, and one with a frozen layer
    inputs = keras.Input((4, 4, 2))
    hidden = layers.BatchNormalization(name="frozen", trainable=False)(inputs)
    hidden = layers.BatchNormalization(scale=False)(hidden)
    answers = layers.BatchNormalization()(layers.Flatten()(hidden))
    copy = make_training_copy(keras.Model(inputs, answers), "float32")
    before = copy.get_layer("frozen").get_weights()
    # When the training copy sees a batch, then it runs, and the frozen layer has not moved.
    copy(np.random.default_rng(1).normal(5, 2, (8, 4, 4, 2)).astype(np.float32), training=True)
    for weights, same in zip(before, copy.get_layer("frozen").get_weights(), strict=True):
        assert (weights == same).all()


def test_a_model_for_the_same_classes_is_continued_as_it_is() -> None:
    network = build("cnn", MNIST_INPUT, 2)
    assert Start(network, ("a", "b")).continued(("a", "b")) == (network, False)


@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_a_model_for_other_classes_gets_a_new_head(architecture: str) -> None:
    # Given a model for two classes, when it is continued for three
    spec = InputSpec(32, 32, "RGB")
    start = build(architecture, spec, 2)
    network, has_new_head = Start(start, ("a", "b")).continued(("a", "b", "c"))
    # Then it has three outputs, and all other layers with their weights
    assert has_new_head
    assert network.output_shape == (None, 3)
    assert all(map(np.array_equal, network.get_weights()[:-2], start.get_weights()[:-2]))
    # and while all but the head is frozen, only the head learns.
    freeze(network, all_but_head=True)
    assert [each.shape for each in network.trainable_variables] == [network.layers[-1].kernel.shape, (3,)]
    freeze(network, all_but_head=False)
    assert len(network.trainable_variables) == len(start.trainable_variables)


def test_a_model_that_ends_in_logits_gets_a_softmax_or_a_new_head() -> None:
    inputs = keras.Input((4, 4))
    logits = layers.Dense(2)(layers.Flatten()(inputs))
    pixels = np.random.default_rng(1).normal(size=(5, 4, 4)).astype(np.float32)
    # Given a model that answers logits, and one with a separate softmax
    start = Start(keras.Model(inputs, logits), ("a", "b"), logits=True)
    same, _ = start.continued(("a", "b"))
    other, _ = Start(keras.Model(inputs, layers.Softmax()(logits)), ("a", "b")).continued(("x", "y", "z"))
    # Then they answer probabilities of their classes.
    for network, classes in ((same, 2), (other, 3)):
        answers = network(pixels).numpy()
        assert answers.shape == (5, classes)
        assert np.allclose(answers.sum(axis=1), 1)


def test_a_model_without_a_dense_end_cannot_get_a_new_head() -> None:
    inputs = keras.Input((4, 4, 2))
    network = keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs))
    with pytest.raises(ModelRefused, match="its last layer is GlobalAveragePooling2D"):
        Start(network, ("a", "b")).continued(("a", "b", "c"))
