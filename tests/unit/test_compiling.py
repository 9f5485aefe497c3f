"""A runtime's answers are compared with those of Keras."""

from __future__ import annotations

import numpy as np

from jobs.models.runtime import RuntimeState
from worker.learning.compiling.steps import compare


def test_a_label_may_differ_only_at_a_tie() -> None:
    expected = np.array([[0.50002, 0.49998], [0.9, 0.1], [0, 0]], np.float32)
    tie = np.array([[0.49999, 0.50001], [0.9, 0.1], [0, 0]], np.float32)
    assert compare(expected, tie)["state"] is RuntimeState.PASSED
    for other, reason in (([0.1, 0.9], "1 of 3 labels differ"), ([0.89, 0.11], "confidence differs")):
        tie[1] = other
        found = compare(expected, tie)
        assert (found["state"], reason in found["reason"]) == (RuntimeState.DIFFERS, True)
