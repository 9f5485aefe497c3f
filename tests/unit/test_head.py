"""The head on a frozen body: rare classes count as much as others, and the held-out images choose."""

from __future__ import annotations

import numpy as np

from worker.learning.head import Head, fit_head

RNG = np.random.default_rng(1)
CENTRES = RNG.normal(size=(3, 20))


def drawn(counts: tuple[int, ...], *, noise: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Return features around the classes' centres, and their labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return (CENTRES[labels] + RNG.normal(0, noise, (len(labels), 20))).astype(np.float32), labels


def fitted(counts: tuple[int, ...], classes: int = 3) -> Head:
    features, labels = drawn(counts)
    ones = np.ones(len(labels), np.float32)
    return fit_head(features, labels, ones, *drawn((50,) * len(counts)), classes)


def recall(head: Head, counts: tuple[int, ...]) -> np.ndarray:
    features, labels = drawn(counts)
    found = head.probabilities(features).argmax(axis=1)
    return np.array([(found[labels == each] == each).mean() for each in range(len(counts))])


def test_a_rare_class_counts_as_much_as_the_others() -> None:
    # Given two classes that overlap, and one of them is fifty times as frequent
    found = recall(fitted((1000, 20)), (500, 500))
    # Then neither is guessed at the other's expense: unweighted, the rare one has a recall of about 0.6
    assert found.min() > 0.75
    assert abs(found[0] - found[1]) < 0.2


def test_a_class_without_training_images_is_never_answered() -> None:
    head = fitted((40, 40), classes=3)
    probabilities = head.probabilities(drawn((10, 10))[0])
    assert probabilities.shape == (20, 3)
    assert probabilities[:, 2].max() == 0
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_held_out_images_choose_a_strength_that_fits_the_noise() -> None:
    # Given few images in much noise, then the head that is best on others is chosen, which is no default
    features, labels = drawn((8, 8, 8), noise=8)
    ones = np.ones(len(labels), np.float32)
    held_out = drawn((100, 100, 100), noise=8)
    chosen = fit_head(features, labels, ones, *held_out, 3)
    none = fit_head(features, labels, ones, held_out[0][:0], held_out[1][:0], 3)
    assert chosen.strength != none.strength
    assert chosen.calibrated_loss(*held_out) < none.calibrated_loss(*held_out)


def test_a_repeated_image_counts_several_times_within_its_class() -> None:
    # Given one image of class 0 that lies among those of class 1, and counts as much as all others together
    features, labels = drawn((30, 30))
    features[0] = CENTRES[1]
    repeats = np.ones(60, np.float32)
    none = features[:0], labels[:0]
    once = fit_head(features, labels, repeats, *none, 2).probabilities(features[:1])[0, 0]
    repeats[0] = 30
    often = fit_head(features, labels, repeats, *none, 2).probabilities(features[:1])[0, 0]
    assert often > once + 0.2
