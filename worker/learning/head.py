"""The head of a network on a frozen body: a logistic regression on the features of the training images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]

#: The strengths that are tried, scikit-learn's C; each fit starts from the one before.
_STRENGTHS: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

#: Without held-out images to choose by.
_DEFAULT_STRENGTH: Final = 0.1

_ITERATIONS: Final = 200

#: The score of a class without training images.
_NEVER: Final = -1e4


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear classifier of features, and how it was chosen."""

    weights: Float32  # (features, classes)
    bias: Float32  # (classes,)
    strength: float  # scikit-learn's C: the inverse of how strongly it is regularised

    def probabilities(self, features: Float32) -> Float32:
        """Return the probability of each class, float32 (n, classes)."""
        scores = features @ self.weights + self.bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        result: Float32 = scores / scores.sum(axis=1, keepdims=True)
        return result

    def balanced_loss(self, features: Float32, labels: Labels) -> float:
        """Return the mean over the classes of their images' mean loss, in nats; 0 without images."""
        losses = self._losses(features, labels)
        return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)] or [0.0]))

    def measure(self, features: Float32, labels: Labels) -> tuple[float, float]:
        """Return the mean loss, in nats, and the accuracy on these images; NaN if there are none."""
        if not len(labels):
            return math.nan, math.nan
        right = self.probabilities(features).argmax(axis=1) == labels
        return float(self._losses(features, labels).mean()), float(right.mean())

    def _losses(self, features: Float32, labels: Labels) -> Float32:
        truth = self.probabilities(features)[np.arange(len(labels)), labels]
        losses: Float32 = -np.log(np.maximum(truth, np.finfo(np.float32).tiny))
        return losses


def fit_head(
    features: Float32,
    labels: Labels,
    repeats: npt.NDArray[np.float32],
    held_out: Float32,
    held_out_labels: Labels,
    classes: int,
) -> Head:
    """Fit a head to the features, float32 (n, features), of images with these labels, below `classes`.

    All classes count the same, however many images they have; `repeats`, float32 (n,), is how often an image
    counts within its class. Of several strengths of regularisation, the held-out images choose: the head with
    the lowest balanced loss is returned.
    """
    # Features of one network differ little in scale among each other, but much between networks.
    scale = np.float32(1 / max(float(features.std()), 1e-6))
    counts = np.bincount(labels, weights=repeats, minlength=classes)
    weights = repeats * (counts.sum() / np.maximum(counts, 1e-9) / np.count_nonzero(counts))[labels]
    heads = []
    # A second thread of BLAS burns ten times the processor time on matrices of this size, and gains nothing.
    with threadpool_limits(1):
        model = LogisticRegression(max_iter=_ITERATIONS, tol=1e-3, warm_start=True)
        for strength in _STRENGTHS if len(held_out) else (_DEFAULT_STRENGTH,):
            model.set_params(C=strength)
            model.fit(features * scale, labels, sample_weight=weights)
            heads.append(_head_of(model, scale, classes, strength))
    return min(heads, key=lambda head: head.balanced_loss(held_out, held_out_labels))


def _head_of(model: LogisticRegression, scale: np.float32, classes: int, strength: float) -> Head:
    """Return the fitted model as a head. Classes without training images get no probability."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row: the second class against the first
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    weights = np.zeros((coefficients.shape[1], classes), np.float32)
    bias = np.full(classes, _NEVER, np.float32)
    weights[:, model.classes_] = coefficients.T * scale
    bias[model.classes_] = intercepts
    return Head(weights, bias, strength)
