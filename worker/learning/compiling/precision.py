"""Judge a runtime of lower precision by the gate's limits: its answers need not be those of Keras."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from jobs.models.promotion import TEST_SET, GateLimits, check_limits, check_not_worse, compare_answers
from jobs.models.runtime import ModelRuntime, RuntimeState
from worker.learning.data import Labelled
from worker.learning.evaluation import measure


def judge(
    runtime: ModelRuntime,
    limits: GateLimits,
    labelled: Labelled,
    classes: tuple[str, ...],
    exact: npt.NDArray[np.float32],
    found: npt.NDArray[np.float32],
) -> ModelRuntime:
    """Return the runtime with the gate's verdict on its probabilities, and how many labels it flips.

    `exact` are the probabilities of Keras, `found` those of the runtime, both float32 (n, classes), for the
    test images `labelled`. It passes if it keeps all limits and is not worse than Keras by more than the
    gate's margin.
    """
    if not len(labelled):
        reason = "a lower precision is judged on test images of the model's dataset, and there are none"
        return replace(runtime, state=RuntimeState.FAILED, reason=reason)
    microseconds = runtime.image_microseconds or 0.0
    before = measure(labelled, classes, exact, microseconds)
    after = measure(labelled, classes, found, microseconds)
    compared = compare_answers(after.answers.tobytes(), before.answers.tobytes())
    checks = (
        *check_limits(limits, after.evaluation),
        check_not_worse(TEST_SET, compared, limits.margin),
    )
    failed = [check.text for check in checks if not check.passed]
    flips = int((after.answers[:, 0] != before.answers[:, 0]).sum())
    text = (
        f"{flips:,} of {len(labelled):,} labels differ from those of Keras, "
        f"{compared.gained:,} for the better and {compared.lost:,} for the worse"
    )
    state = RuntimeState.DIFFERS if failed else RuntimeState.PASSED
    return replace(runtime, state=state, reason="; ".join([text, *failed]))
