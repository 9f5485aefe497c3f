"""A runtime's answers are compared with those of Keras."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jobs.models.model import InputSpec
from jobs.models.promotion import GateLimits
from jobs.models.runtime import ModelRuntime, Runtime, RuntimeState
from worker.learning.compiling.precision import judge
from worker.learning.compiling.steps import compare
from worker.learning.data import Labelled, no_images


def test_a_label_may_differ_only_at_a_tie() -> None:
    expected = np.array([[0.50002, 0.49998], [0.9, 0.1], [0, 0]], np.float32)
    tie = np.array([[0.49999, 0.50001], [0.9, 0.1], [0, 0]], np.float32)
    assert compare(expected, tie)["state"] is RuntimeState.PASSED
    for other, reason in (([0.1, 0.9], "1 of 3 labels differ"), ([0.89, 0.11], "confidence differs")):
        tie[1] = other
        found = compare(expected, tie)
        assert (found["state"], reason in found["reason"]) == (RuntimeState.DIFFERS, True)


def test_a_lower_precision_may_flip_labels_but_not_be_worse() -> None:
    # Given 1,000 test images, of which Keras gets all but ten right
    labels = np.arange(1000, dtype=np.uint16) % 2
    exact = _answers(labels, wrong=range(10))
    runtime = ModelRuntime(Runtime.OPENVINO_BF16, RuntimeState.PASSED, threads=1, images=1000)
    test = Labelled(np.zeros((1000, 2, 2), np.uint8), labels, ())
    limits = GateLimits(max_calibration_error=None)
    for wrong, state, said in (
        (range(2, 13), RuntimeState.PASSED, "5 of 1,000 labels differ from those of Keras, 2 for the better"),
        (range(50), RuntimeState.DIFFERS, "40 for the worse; perhaps worse on the test set"),
    ):
        # when a runtime of lower precision gets these wrong, then the gate's margin decides.
        judged = judge(runtime, limits, test, ("a", "b"), exact, _answers(labels, wrong=wrong))
        assert (judged.state, said in (judged.reason or "")) == (state, True), judged.reason

    # Without test images, nothing can be judged.
    none = judge(runtime, limits, no_images(InputSpec(2, 2, "L")), ("a", "b"), exact[:0], exact[:0])
    assert none.state is RuntimeState.FAILED


def _answers(labels: npt.NDArray[np.uint16], *, wrong: range) -> npt.NDArray[np.float32]:
    """Return probabilities that are sure of the labels, or of the other class for those in `wrong`."""
    answers = labels.copy()
    answers[list(wrong)] ^= 1
    return np.eye(2, dtype=np.float32)[answers]
