"""Build the networks, and prepare them for training.

Each network takes uint8 pixels and scales them itself, so that code that serves a model cannot forget it.
"""

from __future__ import annotations

from typing import Any, Final

from jobs.models.model import MNIST_INPUT, InputSpec
from worker.predicting.tensorflow_runtime import keras, multiplies_bfloat16, tf

#: With Keras's default of 0.99, the moving averages would still contain the untrained network when a quick
#: training ends.
_MOMENTUM: Final = 0.9

#: The residual network: the filters of its stages, and the sides of the images, in pixels, in the first stage
#: and after the last one.
_FILTERS: Final = (32, 64, 128, 256)
_FIRST_SIDE: Final = 48
_LAST_SIDE: Final = 8


def build(architecture: str | None, spec: InputSpec, classes: int) -> keras.Model:
    """Return an untrained network from uint8 pixels (n, *spec.shape) to probabilities (n, classes).

    A `cnn` for MNIST's input is a network for digits, and one for any other input a residual network. Raises
    ValueError for an unknown architecture.
    """
    layers = keras.layers
    if architecture == "cnn" and spec.shape != MNIST_INPUT.shape:
        return _residual_network(spec, classes)
    hidden: list[Any]
    if architecture == "mlp":
        hidden = [
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(512, activation="relu"),
        ]
    elif architecture == "cnn":
        hidden = [
            layers.Reshape((*spec.shape, 1)),
            # Unpadded, 28x28 shrinks to 26, 24, 12, then 10, 8, 4, then one point. That is a third of the
            # work of padded layers, and loses nothing: the border of a digit is black.
            *_convolutions(32, 3, 3, 5),
            *_convolutions(64, 3, 3, 5),
            *_convolutions(128, 4),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.3),
        ]
    else:
        raise ValueError(f"unknown architecture {architecture!r}: there are 'mlp' and 'cnn'")
    return keras.Sequential(
        [
            keras.Input(spec.shape, dtype="uint8"),
            layers.Rescaling(1 / 255),
            *hidden,
            layers.Dense(classes, activation="softmax"),
        ],
        name=architecture,
    )


def _residual_network(spec: InputSpec, classes: int) -> keras.Model:
    """Return a small residual network (He, Zhang, Ren, Sun, 2015) whose depth depends on the images' size.

    The stem halves large images to at most _FIRST_SIDE pixels. Each stage but the first halves them again,
    until at most _LAST_SIDE remain.
    """
    layers = keras.layers

    def convolution(inputs: Any, filters: int, size: int, stride: int) -> Any:
        outputs = layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(inputs)
        return layers.BatchNormalization(momentum=_MOMENTUM)(outputs)

    def block(inputs: Any, filters: int, stride: int) -> Any:
        outputs = layers.ReLU()(convolution(inputs, filters, 3, stride))
        outputs = convolution(outputs, filters, 3, 1)
        if stride > 1 or inputs.shape[-1] != filters:
            inputs = convolution(inputs, filters, 1, stride)
        return layers.ReLU()(layers.Add()([inputs, outputs]))

    pixels = keras.Input(spec.shape, dtype="uint8")
    found = layers.Rescaling(1 / 255)(pixels)
    if spec.mode == "L":
        found = layers.Reshape((*spec.shape, 1))(found)
    side = min(spec.width, spec.height)
    halved = side > _FIRST_SIDE
    found = layers.ReLU()(convolution(found, _FILTERS[0], 3, 2 if halved else 1))
    side = -(-side // 2) if halved else side
    while side > _FIRST_SIDE:
        found = layers.ReLU()(convolution(found, _FILTERS[0], 3, 2))
        side = -(-side // 2)
    found = block(found, _FILTERS[0], 1)
    for filters in _FILTERS[1:]:
        if side <= _LAST_SIDE:
            break
        found = block(found, filters, 2)
        side = -(-side // 2)
    found = layers.GlobalAveragePooling2D()(found)
    found = layers.Dropout(0.3)(found)
    return keras.Model(pixels, layers.Dense(classes, activation="softmax")(found), name="cnn")


def _convolutions(filters: int, *sizes: int) -> list[Any]:
    """Return normalised convolutions of these kernel sizes; a size of 5 halves the picture."""
    layers = keras.layers
    return [
        layer
        for size in sizes
        for layer in (
            layers.Conv2D(
                filters,
                size,
                strides=2 if size == 5 else 1,
                padding="same" if size == 5 else "valid",
                use_bias=False,
            ),
            layers.BatchNormalization(momentum=_MOMENTUM),
            layers.ReLU(),
        )
    ]


#: A network of so few layers with weights is fine-tuned as a whole.
_FEW_LAYERS: Final = 20


class _FusedNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Run batch normalisation as one fused operation during training.

    Keras uses a dozen operations, each with a pass over all activations.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
        )
        for moving, of_the_batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self.momentum * moving + (1 - self.momentum) * of_the_batch)
        return outputs


def _can_be_fused(layer: keras.Layer) -> bool:
    """Return whether a layer normalises the channels of pictures, with a scale and an offset."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and bool(layer.scale and layer.center)
        and layer.axis in (-1, 3)
        and layer.input_spec.ndim == 4
    )


def precision(architecture: str | None) -> str:
    """Return the precision in which a network is trained, "bfloat16" or "float32".

    Only a `cnn` uses bfloat16, and only if the processor multiplies it natively. The weights and the finished
    model are float32 in either case.
    """
    return "bfloat16" if architecture == "cnn" and multiplies_bfloat16() else "float32"


def make_training_copy(model: keras.Model, precision: str) -> keras.Model:
    """Return a copy of a network that trains faster: convolutions in `precision`, fused normalisation.

    The copy has the same weights. Never save it: its file could not be loaded without this module.
    """
    layers = keras.layers

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if precision != "float32" and isinstance(
            layer, layers.Conv2D | layers.BatchNormalization | layers.ReLU | layers.Add
        ):
            config["dtype"] = f"mixed_{precision}"
        kind = _FusedNormalization if _can_be_fused(layer) else type(layer)
        return kind.from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def freeze(network: keras.Model) -> None:
    """Let a network with a fitted head learn only the layers before it: all, or the last of more than 20.

    Batch normalisation keeps the statistics of the many images that the network has learnt: those of a few
    others would spoil it. The head keeps what it was fitted to: classes of a few images would be unlearnt.
    """
    normalisation = keras.layers.BatchNormalization
    weighted = [layer for layer in network.layers if layer.weights and not isinstance(layer, normalisation)]
    learning = weighted if len(weighted) <= _FEW_LAYERS else weighted[-(len(weighted) // 3) :]
    learning = learning[:-1] or learning  # without the head, unless it is all
    network.trainable = True
    for layer in network.layers:
        layer.trainable = layer in learning
