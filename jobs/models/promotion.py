"""The checks of the promotion gate: the limits that a model must meet, and the comparison with the champion.

`jobs.ledger.learning.gate` runs them on stored evaluations, and decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jobs.models.evaluation import CalibrationBin, Evaluation, unpack_answers

#: The names of the checks that compare with the champion.
TEST_SET: Final = "test set"
LIVE_SET: Final = "live set"

#: The names of the checks for a minimum accuracy. They are shown before the comparison with the champion.
FLOORS: Final = ("accuracy", "class recall")

#: The name of the check of a first champion, which replaces the comparison.
GUESSING: Final = "guessing"

#: With fewer held-out corrections, the test set decides alone.
MIN_LIVE_IMAGES: Final = 60

#: A p value below this is shown as a bound: nobody needs its digits.
_SMALLEST_P: Final = 1e-16

#: Steps to find a confidence bound: it is then exact to 1e-9.
_BISECTIONS: Final = 30

#: The standard normal distribution's 95th percentile.
_Z_95_ONE_SIDED: Final = 1.6448536269514722


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What a model must reach to become the champion. A limit that is None is off."""

    min_accuracy: float | None = None  # 0 to 1
    min_class_recall: float | None = None  # of each class, 0 to 1
    significance: float = 0.01  # the two-sided p value of McNemar's exact test must be below
    margin: float = 0.01  # how much lower its accuracy on the test set may be if the live set decides, 0 to 1
    live_margin: float = 0.05  # how much lower on the live set if the test set decides, 0 to 1
    max_calibration_error: float | None = 0.03  # 0 to 1, above what chance adds
    max_image_microseconds: float | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the gate, and its result for one model."""

    name: str
    passed: bool
    text: str  # for people


def check_limits(limits: GateLimits, evaluation: Evaluation) -> tuple[Check, ...]:
    """Check the limits that every model must meet, whether or not there is a champion.

    A limit that is off has no check.
    """
    recalls = {
        name: share
        for name, share in zip(evaluation.classes, evaluation.recall, strict=True)
        if share is not None
    }
    worst = min(recalls, key=lambda name: recalls[name])
    microseconds = evaluation.image_microseconds
    checks = (
        _minimum("accuracy", "accuracy", evaluation.accuracy, limits.min_accuracy),
        _minimum("class recall", f"recall of class {worst}", recalls[worst], limits.min_class_recall),
        _check_calibration(evaluation, limits.max_calibration_error),
        _maximum("speed", "microseconds per image", microseconds, limits.max_image_microseconds, digits=1),
    )
    return tuple(check for check in checks if check is not None)


def check_guessing(evaluation: Evaluation) -> Check | None:
    """Check that the model is right more often than if it always answered the largest class of the test set.

    If all test images are of one class, they cannot show that, and there is no check.
    """
    images = {name: sum(row) for name, row in zip(evaluation.classes, evaluation.confusion, strict=True)}
    largest = max(images, key=lambda name: images[name])
    share = images[largest] / evaluation.total
    if share == 1:
        return None
    passed = evaluation.accuracy > share
    text = f"accuracy is {evaluation.accuracy:.4f}, {'above' if passed else 'not above'} the {share:.4f} of "
    return Check(GUESSING, passed, f"{text}always answering {largest}, the largest class")


def _check_calibration(evaluation: Evaluation, most: float | None) -> Check | None:
    """Check the calibration error, of which few images show a part by chance alone."""
    error, chance = evaluation.calibration_error, calibration_by_chance(evaluation.calibration)
    if most is None or error <= most:
        return _maximum("calibration", "calibration error", error, most, digits=4)
    allowed = f"{most:g} and the {chance:.4f} that chance may add to {evaluation.total:,} images"
    if error <= most + chance:
        return Check("calibration", True, f"calibration error is {error:.4f}, not above {allowed}")
    said = _rounded(error, most + chance, 4)
    return Check("calibration", False, f"calibration error is {said}, above {allowed}")


def calibration_by_chance(bins: Sequence[CalibrationBin]) -> float:
    """Return what the calibration error of a perfectly calibrated model stays below, with 95 % confidence.

    In a bin of n images with mean confidence p, the accuracy differs from p by a normal deviate of variance
    p(1 - p)/n. Its absolute value has the mean sqrt(2/pi) and the variance 1 - 2/pi, in units of the
    deviation; the bins add up by their shares of the images.
    """
    images = sum(each.images for each in bins)
    mean = variance = 0.0
    for each in bins:
        if each.images:
            share = each.images / images
            deviation = math.sqrt(each.confidence * (1 - each.confidence) / each.images)
            mean += share * deviation * math.sqrt(2 / math.pi)
            variance += (share * deviation) ** 2 * (1 - 2 / math.pi)
    return mean + _Z_95_ONE_SIDED * math.sqrt(variance)


@dataclass(frozen=True, slots=True)
class Compared:
    """How the challenger and the champion answered the same images."""

    both: int  # images that both got right
    gained: int  # only the challenger
    lost: int  # only the champion
    neither: int

    @property
    def images(self) -> int:
        """Return the number of images."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def p(self) -> float:
        """Return the two-sided p value of McNemar's exact test."""
        return mcnemar(self.gained, self.lost)

    @property
    def loss_bound(self) -> float:
        """Return how much lower the challenger's accuracy can be at most, with 95 % confidence.

        It is the upper end of the one-sided score interval for the difference of two paired proportions:
        T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design", Statistics in Medicine 17, 1998.
        """
        low, high = (self.lost - self.gained) / self.images, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self._score(middle) > -_Z_95_ONE_SIDED:
                low = middle
            else:
                high = middle
        return high

    def _score(self, worse: float) -> float:
        """Return Tango's score for the hypothesis that the challenger's accuracy is lower by `worse`."""
        n, lost, gained = self.images, self.lost, self.gained
        b = (2 * n - lost + gained) * worse - lost - gained
        rate = (math.sqrt(b * b + 8 * n * gained * worse * (1 - worse)) - b) / (4 * n)
        variance = n * (2 * rate + worse * (1 - worse))
        return (lost - gained - n * worse) / math.sqrt(variance) if variance > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"it gets {self.gained} right that the champion gets wrong and {self.lost} the other way round, "
            f"{'p < 1e-16' if self.p < _SMALLEST_P else f'p = {self.p:.2g}'}"
        )


def compare_answers(challenger: bytes, champion: bytes) -> Compared:
    """Compare two models' answers to the same images, as `jobs.ledger.learning.models` stores them.

    Raises ValueError if they are not for the same images.
    """
    ours, truth = unpack_answers(challenger)
    theirs, their_truth = unpack_answers(champion)
    if truth != their_truth:
        raise ValueError("the answers are not about the same images")
    counts = Counter(
        (our == label, their == label) for label, our, their in zip(truth, ours, theirs, strict=True)
    )
    return Compared(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def check_better(limits: GateLimits, test: Compared, live: Compared | None) -> tuple[Check, ...]:
    """Check that the challenger is better than the champion on one set, and not worse on the other.

    `live` is None if there are no held-out corrections. Fewer than MIN_LIVE_IMAGES decide nothing: the test
    set decides alone.
    """
    sets = [(TEST_SET, test, limits.margin)]
    if live is not None and live.images >= MIN_LIVE_IMAGES:
        sets.append((LIVE_SET, live, limits.live_margin))
    better = [
        compared.gained > compared.lost and compared.p < limits.significance for _name, compared, _ in sets
    ]
    checks = []
    for place, (name, compared, margin) in enumerate(sets):
        if better[place]:
            checks.append(Check(name, True, f"better on the {name}: {compared}"))
        elif any(better):
            checks.append(check_not_worse(name, compared, margin))
        elif compared.lost > compared.gained and compared.p < limits.significance:
            checks.append(Check(name, False, f"worse on the {name}: {compared}"))
        else:
            wanted = f"; the gate requires more of the former, and p below {limits.significance:g}"
            checks.append(Check(name, False, f"not better on the {name}: {compared}{wanted}"))
    return tuple(checks)


def check_not_worse(name: str, compared: Compared, margin: float) -> Check:
    """Check that the challenger is not worse on this set by more than the margin.

    A small set cannot show a small margin: 70 images without a difference leave 3.7 points open. The margin
    is then what the set can show; otherwise, models of a small dataset could never learn from corrections.
    """
    worse = compared.loss_bound
    smallest = Compared(compared.images, 0, 0, 0).loss_bound
    passed = worse <= max(margin, smallest)
    said = "not worse" if passed else "perhaps worse"
    text = f"{said} on the {name}: at most {100 * max(worse, 0):.2f} points"
    if not passed:
        text += f", more than {100 * max(margin, smallest):.3g}"
    text += ", with 95 % confidence"
    if smallest > margin and worse > margin:
        text += f"; {compared.images:,} images cannot show less"
    if not passed:
        text += "; `labelmill gate` can allow more"
    return Check(name, passed, text)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p value of McNemar's exact test, 0 to 1.

    `gained` images are right only by one model, `lost` only by the other. If both were equally good, each of
    these n = gained + lost images would be a fair coin toss, so p = min(1, 2 P(Binomial(n, 1/2) <=
    min(gained, lost))). It is computed in integers, so it is exact for any number of images. See Q. McNemar,
    "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947.
    """
    tosses = gained + lost
    ways = outcomes = 1  # to get 0 heads
    for heads in range(1, min(gained, lost) + 1):
        outcomes = outcomes * (tosses - heads + 1) // heads
        ways += outcomes
    p: float = 2 * ways / 2**tosses
    return min(1.0, p)


def _minimum(name: str, what: str, value: float, least: float | None) -> Check | None:
    if least is None:
        return None
    if value < least:
        return Check(name, False, f"{what} is {_rounded(value, least, 4)}, below the minimum of {least:g}")
    return Check(name, True, f"{what} is {value:.4f}, {least:g} or more")


def _maximum(name: str, what: str, value: float, most: float | None, *, digits: int) -> Check | None:
    if most is None:
        return None
    if value > most:
        return Check(name, False, f"{what} is {_rounded(value, most, digits)}, above the maximum of {most:g}")
    return Check(name, True, f"{what} is {value:.{digits}f}, {most:g} or less")


def _rounded(value: float, limit: float, digits: int) -> str:
    """Format a value that misses its limit, rounded so that it does not appear to meet it."""
    rounded, step = float(f"{value:.{digits}f}"), 10.0**-digits
    if value < limit <= rounded:
        rounded -= step
    elif value > limit >= rounded:
        rounded += step
    return f"{rounded:.{digits}f}"
