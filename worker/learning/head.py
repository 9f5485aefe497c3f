"""The head of a network on a frozen body: a logistic regression on the features of the training images."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from worker.learning.temperature import fit_temperature, scale, softmax

Float32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]

#: The strengths that are tried, scikit-learn's C; each fit starts from the one before.
_STRENGTHS: Final = (0.001, 0.01, 0.1, 1.0)

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
        return softmax(features @ self.weights + self.bias)

    def calibrated_loss(self, features: Float32, labels: Labels) -> float:
        """Return the mean loss of each class's images, averaged over the classes, in nats; 0 without images.

        It is that after temperature scaling: how sure the head is makes no difference.
        """
        found = self.probabilities(features)
        losses = _losses(scale(found, fit_temperature(found, labels)), labels)
        return float(np.mean([losses[labels == label].mean() for label in np.unique(labels)] or [0.0]))

    def measure(self, features: Float32, labels: Labels) -> tuple[float, float]:
        """Return the mean loss, in nats, and the accuracy on these images; NaN if there are none."""
        if not len(labels):
            return math.nan, math.nan
        found = self.probabilities(features)
        return float(_losses(found, labels).mean()), float((found.argmax(axis=1) == labels).mean())


def _losses(probabilities: Float32, labels: Labels) -> Float32:
    truth = probabilities[np.arange(len(labels)), labels]
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
    the lowest calibrated loss is returned.
    """
    # Features of one network differ little in scale among each other, but much between networks. Without
    # their common mean, the solver needs half as many steps.
    mean = features.mean(axis=0)
    factor = np.float32(1 / max(float(features.std()), 1e-6))
    scaled = (features - mean) * factor
    counts = np.bincount(labels, weights=repeats, minlength=classes)
    weights = repeats * (counts.sum() / np.maximum(counts, 1e-9) / np.count_nonzero(counts))[labels]
    heads = []
    # A second thread of BLAS burns ten times the processor time on matrices of this size, and gains nothing.
    with threadpool_limits(1), warnings.catch_warnings():
        # The steps are limited, and the held-out images judge what they have led to.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=_ITERATIONS, tol=1e-3, warm_start=True)
        for strength in _STRENGTHS if len(held_out) else (_DEFAULT_STRENGTH,):
            model.set_params(C=strength)
            model.fit(scaled, labels, sample_weight=weights)
            heads.append(_head_of(model, mean, factor, classes, strength))
    return min(heads, key=lambda head: head.calibrated_loss(held_out, held_out_labels))


def _head_of(
    model: LogisticRegression, mean: Float32, factor: np.float32, classes: int, strength: float
) -> Head:
    """Return the fitted model as a head for features as they are, from which no mean is subtracted.

    Classes without training images get no probability.
    """
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row: the second class against the first
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    weights = np.zeros((coefficients.shape[1], classes), np.float32)
    bias = np.full(classes, _NEVER, np.float32)
    weights[:, model.classes_] = coefficients.T * factor
    bias[model.classes_] = intercepts - mean @ weights[:, model.classes_]
    return Head(weights, bias, strength)
