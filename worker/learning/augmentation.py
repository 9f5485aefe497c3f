"""Distort training images at random: bend them (rotate, zoom, shear, deform elastically), mirror, brighten.

The elastic deformation is that of Simard, Steinkraus and Platt (Best Practices for Convolutional Neural
Networks Applied to Visual Document Analysis, 2003): a random displacement field, smoothed by a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from worker.learning.recipes import Augmentation
from worker.predicting.tensorflow_runtime import tf

#: Grid points per bump width. The displacement field is a sum of Gaussian bumps on this grid: it looks like
#: smoothed noise, but takes 50 random numbers per image instead of 784.
_BUMPS_PER_WIDTH = 1.0


def distorter(
    augmentation: Augmentation, height: int, width: int, *, edges: bool = False
) -> Callable[[Any, Any, Any], Any]:
    """Return a function that distorts images in a TensorFlow graph.

    It takes images, uint8 (n, height, width) or (n, height, width, 3), a seed, int32 (2,), and the share of
    the distortion, float32 from 0 to 1, and returns images of the same shape and type. The same seed gives
    the same distortion. Pixels from outside the picture are 0, or with `edges` those of the nearest edge.
    """
    bend = _bender(augmentation, height, width, edges=edges)

    def distort(images: Any, seed: Any, share: Any) -> Any:
        if augmentation.bends:
            images = bend(images, seed, share)
        shape = (tf.shape(images)[0], *(1 for _ in images.shape[1:]))
        if augmentation.mirror:
            is_mirrored = tf.random.stateless_uniform(shape, seed + 2) < 0.5
            images = tf.where(is_mirrored, tf.reverse(images, (2,)), images)
        if augmentation.brightness or augmentation.contrast:
            draws = share * tf.random.stateless_uniform((2, *shape), seed + 3, -1.0, 1.0)
            pixels = tf.cast(images, tf.float32)
            mean = tf.reduce_mean(pixels, tuple(range(1, len(images.shape))), keepdims=True)
            pixels = mean + (pixels - mean) * (1 + draws[0] * augmentation.contrast)
            pixels += 255 * draws[1] * augmentation.brightness
            images = tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.uint8)
        return images

    return distort


def _bender(
    augmentation: Augmentation, height: int, width: int, *, edges: bool
) -> Callable[[Any, Any, Any], Any]:
    """Return a function like that of `distorter` that only moves pixels."""
    rows = _bumps(height, augmentation.smoothness)
    columns = _bumps(width, augmentation.smoothness)
    y, x = np.meshgrid(
        np.arange(height, dtype=np.float32) - (height - 1) / 2,
        np.arange(width, dtype=np.float32) - (width - 1) / 2,
        indexing="ij",
    )

    def bend(images: Any, seed: Any, share: Any) -> Any:
        count = tf.shape(images)[0]
        draws = share * tf.random.stateless_uniform((4, count, 1, 1), seed, -1.0, 1.0)
        angle = draws[0] * math.radians(augmentation.rotation)
        zoom_y, zoom_x = 1.0 + draws[1] * augmentation.zoom, 1.0 + draws[2] * augmentation.zoom
        shear = draws[3] * augmentation.shear
        cosine, sine = tf.cos(angle), tf.sin(angle)
        # Backward mapping: for each pixel of the new picture, the point in the old one.
        slanted = x + shear * y
        from_y = (sine * slanted + cosine * y) / zoom_y
        from_x = (cosine * slanted - sine * y) / zoom_x
        if augmentation.elastic:
            noise = tf.random.stateless_normal((2, count, rows.shape[1], columns.shape[1]), seed + 1)
            field = (
                share * augmentation.elastic * tf.matmul(tf.matmul(rows, noise), columns, transpose_b=True)
            )
            from_y, from_x = from_y + field[0], from_x + field[1]
        from_y, from_x = from_y + (height - 1) / 2, from_x + (width - 1) / 2
        if edges:
            from_y = tf.clip_by_value(from_y, 0.0, height - 1.0)
            from_x = tf.clip_by_value(from_x, 0.0, width - 1.0)
        if len(images.shape) == 3:
            return _sample(images, from_y, from_x)
        return tf.stack([_sample(channel, from_y, from_x) for channel in tf.unstack(images, axis=3)], axis=3)

    return bend


def _bumps(size: int, width: float) -> Any:
    """Return k Gaussian bumps, float32 (size, k).

    They are scaled so that their sum, each times a random number of variance 1, has variance 1 everywhere.
    """
    step = width / _BUMPS_PER_WIDTH
    centres = np.arange(-2 * width, size + 2 * width, step)
    bumps = np.exp(-((np.arange(size)[:, None] - centres) ** 2) / (2 * width**2))
    return (bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32)


def _sample(images: Any, y: Any, x: Any) -> Any:
    """Return the images sampled at the points (y, x), bilinearly: uint8 (n, height, width)."""
    height, width = images.shape[1:3]
    # Pad with one black pixel, to which all points further out are clipped.
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
