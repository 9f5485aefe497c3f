"""Training images, distorted at random: turned, zoomed, slanted, and rubbed out of shape.

The elastic part is Simard, Steinkraus and Platt's (Best Practices for Convolutional Neural Networks Applied
to Visual Document Analysis, 2003): a random field of displacements, smoothed by a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from worker.learning.recipes import Augmentation
from worker.predicting.tensorflow_runtime import tf

#: The smooth field is a sum of Gaussian bumps on a grid so many times finer than their width: it looks like
#: smoothed noise, and takes 50 random numbers an image, not 784.
_BUMPS_PER_WIDTH = 1.0


def distorter(augmentation: Augmentation, height: int, width: int) -> Callable[[Any, Any, Any], Any]:
    """A function of TensorFlow's graph: uint8 (n, height, width), a seed, int32 (2,), and how much of the
    distortion, float32 from 0 to 1, to uint8 of the same shape. The same seed distorts the same way. What
    comes in from outside the picture is 0.
    """
    rows = _bumps(height, augmentation.smoothness)
    columns = _bumps(width, augmentation.smoothness)
    y, x = np.meshgrid(
        np.arange(height, dtype=np.float32) - (height - 1) / 2,
        np.arange(width, dtype=np.float32) - (width - 1) / 2,
        indexing="ij",
    )

    def distort(images: Any, seed: Any, share: Any) -> Any:
        count = tf.shape(images)[0]
        dice = share * tf.random.stateless_uniform((4, count, 1, 1), seed, -1.0, 1.0)
        turn = dice[0] * math.radians(augmentation.rotation)
        zoom_y, zoom_x = 1.0 + dice[1] * augmentation.zoom, 1.0 + dice[2] * augmentation.zoom
        slant = dice[3] * augmentation.shear
        cosine, sine = tf.cos(turn), tf.sin(turn)
        # Where each pixel of the new picture comes from: the point it shows in the old one.
        slanted = x + slant * y
        from_y = (sine * slanted + cosine * y) / zoom_y
        from_x = (cosine * slanted - sine * y) / zoom_x
        if augmentation.elastic:
            noise = tf.random.stateless_normal((2, count, rows.shape[1], columns.shape[1]), seed + 1)
            field = (
                share * augmentation.elastic * tf.matmul(tf.matmul(rows, noise), columns, transpose_b=True)
            )
            from_y, from_x = from_y + field[0], from_x + field[1]
        return _sample(images, from_y + (height - 1) / 2, from_x + (width - 1) / 2)

    return distort


def _bumps(size: int, width: float) -> Any:
    """float32 (size, k): k Gaussian bumps, scaled so that a sum of them, each times a random number of
    variance 1, has variance 1 at every place.
    """
    step = width / _BUMPS_PER_WIDTH
    centres = np.arange(-2 * width, size + 2 * width, step)
    bumps = np.exp(-((np.arange(size)[:, None] - centres) ** 2) / (2 * width**2))
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)


def _sample(images: Any, y: Any, x: Any) -> Any:
    """The pictures at the points (y, x), between pixels bilinearly; uint8 (n, height, width)."""
    height, width = images.shape[1:3]
    # A border of one black pixel: points further out than that are moved onto it.
    padded = tf.reshape(tf.pad(images, ((0, 0), (1, 1), (1, 1))), (tf.shape(images)[0], -1))
    y = tf.clip_by_value(y + 1.0, 0.0, height + 0.999)
    x = tf.clip_by_value(x + 1.0, 0.0, width + 0.999)
    top, left = tf.floor(y), tf.floor(x)
    down, right = y - top, x - left
    place = tf.cast(top, tf.int32) * (width + 2) + tf.cast(left, tf.int32)
    place = tf.reshape(place, (tf.shape(images)[0], -1))

    def corner(offset: int) -> Any:
        found = tf.gather(padded, place + offset, batch_dims=1)
        return tf.reshape(tf.cast(found, tf.float32), tf.shape(y))

    upper = corner(0) * (1 - right) + corner(1) * right
    lower = corner(width + 2) * (1 - right) + corner(width + 3) * right
    return tf.cast(tf.round(upper * (1 - down) + lower * down), tf.uint8)
