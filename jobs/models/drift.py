"""Drift: how far recent images differ from those of a model's evaluation, by their distribution over groups.

`jobs.ledger.learning.health` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: The usual thresholds of the population stability index: N. Siddiqi, Credit Risk Scorecards, Wiley 2006.
STEADY_BELOW: Final = 0.1
DRIFTED_ABOVE: Final = 0.25

#: Fewer images than this are inconclusive: by chance alone, the index of ten groups is about 9 / images, so
#: 0.045.
MIN_IMAGES: Final = 200


class Drift(StrEnum):
    """The meaning of the index."""

    STEADY = "steady"
    MOVED = "moved"
    DRIFTED = "drifted"
    UNKNOWN = "unknown"  # too few images


@dataclass(frozen=True, slots=True)
class Shift:
    """Numbers of images by group, in the evaluation and since."""

    groups: tuple[str, ...]
    expected: tuple[int, ...]  # images of each group in the evaluation
    actual: tuple[int, ...]  # images of each group since

    @property
    def index(self) -> float | None:
        """Return the population stability index, or None if there are too few images on either side."""
        if min(sum(self.expected), sum(self.actual)) < MIN_IMAGES:
            return None
        return population_stability(self.expected, self.actual)

    @property
    def drift(self) -> Drift:
        """Return the meaning of the index."""
        index = self.index
        if index is None:
            return Drift.UNKNOWN
        if index < STEADY_BELOW:
            return Drift.STEADY
        return Drift.MOVED if index <= DRIFTED_ABOVE else Drift.DRIFTED


def population_stability(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Return the population stability index of two counts by the same groups: 0 if the shares are equal.

    It is the sum over the groups of (a - e) ln(a / e), where a and e are the group's shares of all images,
    without an upper bound: the divergence of H. Jeffreys, An invariant form for the prior probability in
    estimation problems, Proc. R. Soc. A 186 (1946). An empty group would make it infinite, so it counts as
    half an image; one that is empty on both sides is skipped. Raises ValueError if a side has no image, or
    the numbers of groups differ.
    """
    if len(expected) != len(actual) or not sum(expected) or not sum(actual):
        raise ValueError(f"{sum(expected)} and {sum(actual)} images: nothing to compare")
    index = 0.0
    for then, now in zip(expected, actual, strict=True):
        if then or now:
            e, a = max(then, 0.5) / sum(expected), max(now, 0.5) / sum(actual)
            index += (a - e) * math.log(a / e)
    return index
