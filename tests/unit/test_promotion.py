"""The gate: each limit, the comparison with the champion, and the statistics behind it."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from fractions import Fraction
from math import inf, nextafter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.models.evaluation import NO_ANSWER
from jobs.models.promotion import (
    MIN_LIVE_IMAGES,
    Compared,
    GateLimits,
    calibration_by_chance,
    check_better,
    check_limits,
    compare_answers,
    mcnemar,
)
from tests.evaluations import made_evaluation
from worker.learning.evaluation import calibration_error, calibration_of

LIMITS = GateLimits(
    min_accuracy=0.9,
    min_class_recall=0.8,
    significance=0.01,
    margin=0.01,
    live_margin=0.05,
    max_calibration_error=0.03,
    max_image_microseconds=1000,
)

#: The labels of a hundred images, ten of each class.
TRUTH = [number % 10 for number in range(100)]


# ---- McNemar's test -----------------------------------------------------------------------------------


def by_hand(gained: int, lost: int) -> Fraction:
    """Return twice the chance of at most that many heads, summed from the binomial coefficients."""
    tosses = gained + lost
    tail, ways = 0, 1
    for heads in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (tosses - heads) // (heads + 1)
    return min(Fraction(1), Fraction(2 * tail, 2**tosses))


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemars_p_is_twice_the_binomials_tail(gained, lost):
    assert mcnemar(gained, lost) == float(by_hand(gained, lost)) == mcnemar(lost, gained)


@pytest.mark.parametrize(("gained", "lost"), [(10_000, 0), (5000, 5000), (5200, 4800), (9990, 10)])
def test_mcnemars_p_holds_for_ten_thousand_differences(gained, lost):
    assert mcnemar(gained, lost) == float(by_hand(gained, lost))


# ---- better than the champion -------------------------------------------------------------------------


def answers(*, wrong: int = 0, start: int = 0, without: int = 0) -> bytes:
    """Return right answers, except for `wrong` images from `start` on, followed by `without` missing ones."""
    given_answers = list(TRUTH)
    for index in range(start, start + wrong):
        given_answers[index] = (TRUTH[index] + 1) % 10
    for index in range(start + wrong, start + wrong + without):
        given_answers[index] = NO_ANSWER
    return made_evaluation(TRUTH, given_answers)[1]


def test_no_answer_is_a_wrong_one():
    assert compare_answers(answers(), answers(without=12)) == Compared(88, gained=12, lost=0, neither=0)


def test_answers_to_other_images_are_not_compared():
    other = made_evaluation([1] * 100, [1] * 100)[1]
    with pytest.raises(ValueError, match="not about the same images"):
        compare_answers(answers(), other)
    with pytest.raises(ValueError, match="not about the same images"):
        compare_answers(answers(), answers()[:-2])


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_the_comparison_counts_image_by_image(seed, count):
    chance = random.Random(seed)
    truth, ours, theirs = ([chance.choice([0, 1, 2]) for _ in range(count)] for _ in range(3))
    gained = sum(a == t != b for t, a, b in zip(truth, ours, theirs, strict=True))
    lost = sum(b == t != a for t, a, b in zip(truth, ours, theirs, strict=True))
    compared = compare_answers(made_evaluation(truth, ours)[1], made_evaluation(truth, theirs)[1])
    assert (compared.images, compared.gained, compared.lost) == (count, gained, lost)
    assert compared.both == sum(a == b == t for t, a, b in zip(truth, ours, theirs, strict=True))


def compared(images: int, gained: int, lost: int) -> Compared:
    """Return the comparison of two models that got all other images right."""
    return Compared(images - gained - lost, gained, lost, 0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 5), (5, 5), (40, 40), (10, 30), (0, 40)])
def test_the_bound_is_seldom_too_low(gained, lost):
    # Given a challenger that is not better, and differs from the champion by chance, on 500 images
    chance, images = random.Random(gained * 100 + lost), 500
    true = (lost - gained) / images
    too_low = 0
    for _ in range(1_000):
        draws = [chance.random() * images for _ in range(images)]
        won = sum(draw < gained for draw in draws)
        gone = sum(gained <= draw < gained + lost for draw in draws)
        too_low += compared(images, won, gone).loss_bound < true
    # Then the bound with 95 % confidence is below the truth in about one case of twenty.
    assert too_low <= 75


EQUAL = compared(1_000, gained=5, lost=5)


def checked(test: Compared, live: Compared | None = None) -> list[tuple[str, bool]]:
    return [(check.name, check.passed) for check in check_better(LIMITS, test, live)]


def test_without_a_live_set_the_test_set_decides():
    assert checked(compared(100, gained=10, lost=0)) == [("test set", True)]
    assert checked(compared(100, gained=5, lost=0)) == [("test set", False)]
    # However small p is, if it is for the champion
    [worse] = check_better(LIMITS, compared(100, gained=0, lost=60), None)
    assert not worse.passed
    assert worse.text == (
        "worse on the test set: it gets 0 right that the champion gets wrong and 60 the other way round, "
        "p < 1e-16"
    )


def test_a_small_live_set_decides_nothing():
    small = compared(MIN_LIVE_IMAGES - 1, gained=MIN_LIVE_IMAGES - 1, lost=0)
    assert checked(EQUAL, small) == [("test set", False)]
    assert checked(EQUAL, compared(MIN_LIVE_IMAGES, MIN_LIVE_IMAGES, 0))[1] == ("live set", True)


def test_a_small_test_set_need_only_show_what_it_can():
    # Given a challenger that is better on the live set, and too few test images to show a margin of 1 point
    better = compared(100, 40, 5)
    # Then no image lost is enough
    not_worse, _ = check_better(LIMITS, compared(70, 0, 0), better)
    assert not_worse.passed
    assert not_worse.text == (
        "not worse on the test set: at most 3.72 points, with 95 % confidence; 70 images cannot show less"
    )
    # And one is too many
    worse, _ = check_better(LIMITS, compared(70, 0, 1), better)
    assert not worse.passed
    assert "more than 3.72, with 95 % confidence" in worse.text


@pytest.mark.parametrize(
    ("test", "live", "passed"),
    [
        pytest.param(EQUAL, EQUAL, [False, False], id="equal on both"),
        pytest.param(compared(1_000, 40, 5), EQUAL, [True, True], id="better on the test set"),
        pytest.param(EQUAL, compared(1_000, 40, 5), [True, True], id="better on the live set"),
        pytest.param(compared(1_000, 40, 5), compared(1_000, 40, 5), [True, True], id="better on both"),
        pytest.param(
            compared(1_000, 5, 40), compared(1_000, 40, 5), [False, True], id="worse on the test set"
        ),
        pytest.param(compared(1_000, 40, 5), compared(100, 5, 15), [True, False], id="worse on the live set"),
    ],
)
def test_a_model_must_be_better_on_one_set_and_not_worse_on_the_other(test, live, passed):
    assert [result for _name, result in checked(test, live)] == passed


# ---- the limits ---------------------------------------------------------------------------------------

GOOD = replace(
    made_evaluation(TRUTH, TRUTH)[0],
    accuracy=0.95,
    recall=(0.95, 0.9, None, *[0.99] * 7),
    calibration_error=0.02,
    calibration=(),  # so that nothing is put down to chance
    image_microseconds=30.0,
)


def failed(evaluation, limits=LIMITS):
    return {check.name: check.text for check in check_limits(limits, evaluation) if not check.passed}


def test_a_good_model_passes_and_each_check_says_by_what():
    assert [(check.name, check.passed, check.text) for check in check_limits(LIMITS, GOOD)] == [
        ("accuracy", True, "accuracy is 0.9500, 0.9 or more"),
        ("class recall", True, "recall of class 1 is 0.9000, 0.8 or more"),
        ("calibration", True, "calibration error is 0.0200, 0.03 or less"),
        ("speed", True, "microseconds per image is 30.0, 1000 or less"),
    ]


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("accuracy", {"accuracy": 0.8999}),
        ("class recall", {"recall": (0.95, 0.9, None, 0.7999, *[0.99] * 6)}),
        ("calibration", {"calibration_error": 0.0301}),
        ("speed", {"image_microseconds": 1000.1}),
    ],
)
def test_each_limit_alone_fails_what_is_beyond_it(check, change):
    assert list(failed(replace(GOOD, **change))) == [check]


@given(st.data(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1e6))
def test_what_fails_reads_as_failing(data, least, most, slowest):
    # Given limits, and a model that is beyond some of them, often by very little
    def near(limit):
        return st.sampled_from([nextafter(limit, -inf), nextafter(limit, inf), limit - 3e-5, limit + 3e-5])

    evaluation = replace(
        GOOD,
        accuracy=data.draw(near(least) | st.floats(0, 1)),
        recall=(data.draw(near(least) | st.floats(0, 1)),) * 10,
        calibration_error=data.draw(near(most) | st.floats(0, 1)),
        image_microseconds=data.draw(near(slowest) | st.floats(0, 1e6)),
    )
    found = failed(evaluation, GateLimits(least, least, 0.01, 0.01, 0.05, most, slowest))
    # Then the rounded figure in each text is beyond the limit as well
    for name, text in found.items():
        [said] = re.findall(r" is (\S+), ", text)
        if name in ("accuracy", "class recall"):
            assert float(said) < least
        else:
            assert float(said) > (most if name == "calibration" else slowest)


def test_few_images_may_miss_the_calibration_by_chance():
    # Given a calibrated model, whose confidences spread over all bins
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.3, 1, 200)
    bins = calibration_of(confidence, rng.random(200) < confidence)
    # Then 95 of 100 such models have an error below what is put down to chance
    drawn = [calibration_error(calibration_of(confidence, rng.random(200) < confidence)) for _ in range(1000)]
    assert calibration_by_chance(bins) == pytest.approx(np.quantile(drawn, 0.95), rel=0.15)
    # and the gate allows as much above its limit, but no more
    chance = calibration_by_chance(bins)
    for error, passed in ((0.03 + chance - 1e-4, True), (0.03 + chance + 1e-4, False)):
        few = replace(GOOD, calibration=bins, calibration_error=error)
        [check] = [each for each in check_limits(LIMITS, few) if each.name == "calibration"]
        assert check.passed is passed
        assert f"{chance:.4f} that chance may add to 100 images" in check.text


def test_exactly_at_every_limit_passes():
    edge = replace(GOOD, accuracy=0.9, recall=(0.8,) * 10, calibration_error=0.03, image_microseconds=1000.0)
    assert failed(edge) == {}
