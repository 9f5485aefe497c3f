"""Evaluation: each figure against its formula, and all of them on a real model."""

from __future__ import annotations

import base64
import io
import json
import math
from array import array
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from jobs.models.evaluation import (
    CALIBRATION_BINS,
    CONFIDENCE_EDGES,
    MISTAKES,
    NO_ANSWER,
    Evaluation,
    Figures,
    unpack_answers,
    wilson,
)
from jobs.models.model import MNIST_INPUT
from worker.learning.data import Labelled
from worker.learning.evaluation import (
    MIN_PROBABILITY,
    Evaluated,
    calibration_error,
    calibration_of,
    confusion_of,
    evaluate,
    log_loss,
)
from worker.predicting.classifier import Classifier
from worker.predicting.tensorflow_runtime import keras

CLASSES = ("ant", "bee", "cat")


# ---- formula by formula -------------------------------------------------------------------------------


@given(st.integers(1, 20_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
@example((0, 1))
@example((10_000, 10_000))
def test_wilsons_interval_ends_where_the_accuracy_would_be_z_deviations_away(counts):
    correct, total = counts
    share = correct / total
    low, high = wilson(correct, total)
    # It contains the accuracy, and stays between 0 and 1
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    # and as Wilson defined it, each end is 1.96 of its own standard deviations away.
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / total), rel=1e-3)


def test_every_class_counts_the_same_in_macro_f1_and_balanced_accuracy():
    # Given nine of ten ants right, the other taken for a bee; a bee right, a bee without an answer; an owl
    # taken for an ant; and no cat
    confusion = ((9, 1, 0, 0, 0), (0, 1, 0, 0, 1), (0, 0, 0, 0, 0), (1, 0, 0, 0, 0))
    figures = Figures.from_confusion(("ant", "bee", "cat", "owl"), confusion)
    # Then recalls are 0.9, 0.5 and 0; F1 is 0.9, 0.5 and 0; the class without images does not count
    assert figures.recall == (0.9, 0.5, None, 0.0)
    assert figures.precision == (0.9, 0.5, None, None)
    assert figures.balanced_accuracy == pytest.approx((0.9 + 0.5) / 3)
    assert figures.macro_f1 == pytest.approx((0.9 + 0.5) / 3)
    assert (figures.total, figures.correct) == (13, 10)


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=3, max_size=3).filter(
        lambda rows: any(map(any, rows))
    )
)
def test_macro_f1_is_the_harmonic_mean_of_precision_and_recall(confusion):
    figures = Figures.from_confusion(CLASSES, confusion)
    scores = []
    for place, row in enumerate(confusion):
        if sum(row):
            labelled_so = sum(each[place] for each in confusion)
            scores.append(2 * row[place] / (sum(row) + labelled_so))
    assert figures.macro_f1 == pytest.approx(sum(scores) / len(scores))


ANSWERED = st.lists(st.tuples(st.sampled_from([0, 1, 2, NO_ANSWER]), st.integers(0, 2)), min_size=1)


@given(ANSWERED)
def test_the_confusion_matrix_counts_each_image_once(pairs):
    answers, labels = (np.array(column, np.uint16) for column in zip(*pairs, strict=True))
    matrix = confusion_of(answers, labels, len(CLASSES)).tolist()
    for truth in range(3):
        for place, answer in enumerate([0, 1, 2, NO_ANSWER]):
            assert matrix[truth][place] == pairs.count((answer, truth))


PROBABILITY = st.floats(0, 1, width=32)


@given(st.lists(st.tuples(st.tuples(PROBABILITY, PROBABILITY, PROBABILITY), st.integers(0, 2)), min_size=1))
def test_the_log_loss_is_the_mean_surprise_at_the_truth(rows):
    probabilities = np.array([row for row, _ in rows], np.float32)
    labels = np.array([label for _, label in rows], np.uint8)
    surprises = [-math.log(min(1.0, max(MIN_PROBABILITY, row[label]))) for row, label in rows]
    assert log_loss(probabilities, labels) == pytest.approx(math.fsum(surprises) / len(rows), abs=1e-9)


EDGES = [step / CALIBRATION_BINS for step in range(CALIBRATION_BINS + 1)]


@given(st.lists(st.tuples(st.one_of(PROBABILITY, st.sampled_from(EDGES)), st.booleans()), max_size=60))
def test_calibration_compares_confidence_and_accuracy_bin_by_bin(answers):
    bins = calibration_of(
        np.array([confidence for confidence, _ in answers], np.float64),
        np.array([right for _, right in answers], np.bool_),
    )
    # Each bin has the images above its lower edge and up to its upper one; zero is in the first bin
    expected_error = Fraction(0)
    for place, each in enumerate(bins):
        assert (each.low, each.high) == (EDGES[place], EDGES[place + 1])
        here = [
            (confidence, right)
            for confidence, right in answers
            if each.low < confidence <= each.high or (place == 0 and confidence == 0)
        ]
        assert each.images == len(here)
        if here:
            confidence = sum(Fraction(confidence) for confidence, _ in here) / len(here)
            accuracy = Fraction(sum(right for _, right in here), len(here))
            assert each.confidence == pytest.approx(float(confidence))
            assert each.accuracy == pytest.approx(float(accuracy))
            expected_error += len(here) * abs(accuracy - confidence) / len(answers)
    # and the error is the mean difference of the two, weighted by images.
    assert calibration_error(bins) == pytest.approx(float(expected_error), abs=1e-9)


# ---- all figures, on a real model ---------------------------------------------------------------------


def reader(scale: float = 0.01) -> Classifier:
    """Return a model whose class is the brightest of an image's first three pixels."""
    model = keras.Sequential(
        [
            keras.Input((28, 28), dtype="uint8"),
            keras.layers.Flatten(),
            keras.layers.Dense(len(CLASSES), activation="softmax", use_bias=False),
        ]
    )
    kernel = np.zeros((784, 3), np.float32)
    kernel[0, 0] = kernel[1, 1] = kernel[2, 2] = scale
    model.set_weights([kernel])
    return Classifier.of_keras(model, CLASSES, MNIST_INPUT)


def pictures(rows: np.ndarray) -> np.ndarray:
    """Return images whose first three pixels are these, on black: uint8 (n, 28, 28)."""
    images = np.zeros((len(rows), 28, 28), np.uint8)
    images[:, 0, :3] = rows
    return images


def labelled(images: np.ndarray, labels: np.ndarray) -> Labelled:
    return Labelled(images, labels, ("",) * len(labels))


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray, Evaluated]:
    chance = np.random.default_rng(3)
    rows = chance.integers(0, 256, (700, 3), dtype=np.uint8)
    # About two of three labels are what the model answers.
    labels = np.where(chance.random(700) < 2 / 3, rows.argmax(axis=1), chance.integers(0, 3, 700))
    labels = labels.astype(np.uint16)
    return rows, labels, evaluate(reader(), labelled(pictures(rows), labels))


def test_every_figure_is_the_one_of_the_models_answers(case):
    rows, labels, evaluated = case
    # Given the model's answers, computed by hand
    scores = np.exp(rows.astype(np.float64) * 0.01)
    scores /= scores.sum(axis=1, keepdims=True)
    answers, sure = scores.argmax(axis=1), scores.max(axis=1)
    right = answers == labels
    # Then all figures follow from them
    figures = evaluated.evaluation
    assert (figures.total, figures.correct, figures.accuracy) == (700, right.sum(), right.mean())
    assert (figures.accuracy_low, figures.accuracy_high) == wilson(int(right.sum()), 700)
    assert figures.classes == CLASSES
    for place in range(3):
        assert figures.precision[place] == pytest.approx(right[answers == place].mean())
        assert figures.recall[place] == pytest.approx(right[labels == place].mean())
        assert figures.label_histogram[place] == (answers == place).sum()
    assert figures.log_loss == pytest.approx(-np.log(scores[np.arange(700), labels]).mean(), abs=1e-5)
    assert sum(each.images for each in figures.calibration) == 700
    assert figures.calibration_error == pytest.approx(
        calibration_error(calibration_of(sure, right)), abs=1e-5
    )
    for place, (low, high) in enumerate(pairwise(CONFIDENCE_EDGES)):
        assert figures.confidence_histogram[place] == ((low <= sure) & (sure < high)).sum()
    assert 0 < figures.image_microseconds < 1e6
    # and so do the stored answers, next to the true labels.
    assert unpack_answers(evaluated.answers.tobytes()) == (array("H", answers), array("H", labels))


def test_the_surest_mistakes_are_kept_with_their_images(case):
    rows, labels, evaluated = case
    mistakes = evaluated.evaluation.mistakes
    wrong = np.flatnonzero(evaluated.answers[:, 0] != labels)
    # Then the most confident mistakes are kept, in that order
    assert len(mistakes) == MISTAKES < len(wrong)
    sure = [mistake.confidence for mistake in mistakes]
    assert sure == sorted(sure, reverse=True)
    kept = {mistake.index for mistake in mistakes}
    spread = rows.max(axis=1).astype(int) - np.sort(rows, axis=1)[:, 1]
    assert kept <= set(wrong.tolist())
    assert max(spread[index] for index in set(wrong.tolist()) - kept) <= max(spread[index] for index in kept)
    for mistake in mistakes:
        # and each has its true label, its predicted label, and its image.
        assert mistake.truth == CLASSES[labels[mistake.index]]
        assert mistake.label == CLASSES[rows[mistake.index].argmax()] != mistake.truth
        with Image.open(io.BytesIO(base64.b64decode(mistake.png))) as image:
            assert (np.asarray(image) == pictures(rows[[mistake.index]])[0]).all()


def test_an_evaluation_goes_through_json_unchanged(case):
    evaluation = case[2].evaluation
    assert Evaluation.from_json(json.loads(json.dumps(asdict(evaluation)))) == evaluation


def test_an_image_without_a_sound_answer_counts_as_wrong_and_has_no_confidence():
    # Given a model that only answers NaN
    classifier = reader(math.nan)
    evaluated = evaluate(
        classifier, labelled(pictures(np.eye(3, dtype=np.uint8)), np.arange(3, dtype=np.uint16))
    )
    figures = evaluated.evaluation
    # Then nothing is right, and the last column of the confusion matrix has all images
    assert (figures.accuracy, figures.correct, figures.total) == (0, 0, 3)
    assert figures.confusion == ((0, 0, 0, 1),) * 3
    assert evaluated.answers[:, 0].tolist() == [NO_ANSWER] * 3
    # and a share of nothing is None.
    assert (figures.precision, figures.recall) == ((None,) * 3, (0.0,) * 3)
    assert sum(figures.confidence_histogram) == 0
    assert (figures.calibration_error, figures.mistakes) == (0, ())
    assert figures.log_loss == pytest.approx(-math.log(MIN_PROBABILITY))


def test_there_is_nothing_to_evaluate_without_images_or_with_foreign_labels():
    classifier, images = reader(), pictures(np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="cannot be compared"):
        evaluate(classifier, labelled(images[:0], np.zeros(0, np.uint16)))
    with pytest.raises(ValueError, match="cannot be compared"):
        evaluate(classifier, labelled(images, np.zeros(3, np.uint16)))
    with pytest.raises(ValueError, match="not one of the model's 3 classes"):
        evaluate(classifier, labelled(images, np.array([0, 3], np.uint16)))
