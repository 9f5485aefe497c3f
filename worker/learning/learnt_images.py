"""The training images as a training learns them: how often, shifted, and with what weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from worker.learning.data import Data, Labelled
from worker.learning.recipes import Recipe

#: How much more an image of a rare class may weigh than one of the most frequent class, from nothing.
MAX_CLASS_WEIGHT: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class LearntImages:
    """The images of one training, and how often each is learnt."""

    images: Labelled  # the learnt ones are among them
    labels: npt.NDArray[np.int32]  # of `images`
    learnt: npt.NDArray[np.intp]  # rows of `images`; corrections are in it several times
    class_weights: npt.NDArray[np.float32] | None
    shift: int
    edges: bool

    def batches(self, steps: int, rng: np.random.Generator) -> list[npt.NDArray[np.intp]]:
        """Return the rows to learn in each step of an epoch.

        Batch sizes differ by at most one. A small remainder batch would spoil the `cnn`: a tenth of its
        moving averages comes from the last batch, which could be a single image.
        """
        return np.array_split(rng.permutation(self.learnt), steps)

    def batch(self, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Return the images in these rows, each shifted at random."""
        down, right = rng.integers(2 * self.shift + 1, size=(2, len(rows)))
        images = self.images.take(rows)
        if self.shift:
            images = shifted_views(images, self.shift, edges=self.edges)[np.arange(len(rows)), down, right]
        return images


def learnt_images(data: Data, recipe: Recipe) -> LearntImages:
    """Return the training images; corrected ones are repeated as the recipe says."""
    labels = data.train.labels.astype(np.int32)
    learnt, corrected = np.split(np.arange(len(labels)), [data.before_corrections])
    learnt = np.append(learnt, np.tile(corrected, recipe.repeats_of(len(corrected), len(learnt))))
    # With limited weights, a fine-tuning unlearns rare classes, for which its head was fitted.
    limit = math.inf if recipe.architecture == "finetune" else MAX_CLASS_WEIGHT
    weights = class_weights(labels[learnt], len(data.classes), limit) if recipe.class_weights else None
    return LearntImages(
        images=data.train,
        labels=labels,
        learnt=learnt,
        class_weights=weights,
        shift=recipe.augmentation.shift if recipe.augmentation else 0,
        edges=recipe.augment is not None,
    )


def class_weights(labels: npt.NDArray[np.int32], classes: int, limit: float) -> npt.NDArray[np.float32]:
    """Return how much an image of each class weighs in the loss, 1 on average over all images.

    The weights are the inverse frequencies, but at most `limit` times the smallest: a network that learns
    from nothing would memorise a few images with very large weights.
    """
    counts = np.bincount(labels, minlength=classes)
    inverse = 1 / np.maximum(counts, max(1, counts.max() / limit))
    weights: npt.NDArray[np.float64] = inverse * counts.sum() / (inverse * counts).sum()
    return weights.astype(np.float32)


def shifted_views(images: npt.NDArray[np.uint8], shift: int, *, edges: bool = False) -> npt.NDArray[np.uint8]:
    """Return a view of the images shifted by up to `shift` pixels in each direction.

    It is uint8 (n, 2 * shift + 1, 2 * shift + 1, *image shape), over one copy of the images with a black
    border, or with `edges` one that repeats the outermost pixels.
    """
    border = ((0, 0), (shift, shift), (shift, shift), *(((0, 0),) * (images.ndim - 3)))
    windows = sliding_window_view(
        np.pad(images, border, mode="edge" if edges else "constant"), images.shape[1:3], axis=(1, 2)
    )
    # In colour images, the window's axes come after the channels: move the channels to the end.
    return windows if images.ndim == 3 else np.moveaxis(windows, 3, -1)
