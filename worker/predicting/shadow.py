"""The challenger in the shadow: it sees the pixels that the job's model sees, and nothing depends on it.

Whatever goes wrong with it is a line in the log; the chunk goes on without. What it says is recorded by
`jobs.ledger.shadows`, with the outcomes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from billiard.exceptions import SoftTimeLimitExceeded

from jobs.ledger.outcomes import CONFIDENCE_DIGITS
from jobs.ledger.shadows import KEPT_DISAGREEMENTS, Disagreement, Shadowed
from worker.predicting.time_limit import showing_the_time_limit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from worker.predicting.classifier import Classifier, Predictions

logger = logging.getLogger(__name__)

#: The share of a chunk's time limit that a challenger may take: the rest is its job's.
TIME_SHARE: Final = 0.25


class Shadow:
    """Compares a challenger with the model of a job, on the images of one chunk."""

    def __init__(
        self, model_id: str, challenger: Classifier, champion: Classifier, *, first_index: int, seconds: float
    ) -> None:
        """`first_index`: of the chunk's first image, in its job. `seconds`: how long all of it may take."""
        self._model_id = model_id
        self._challenger: Classifier | None = challenger
        self._first_index = first_index
        self._seconds = seconds
        self._classes = champion.classes
        self._images = 0
        self._without_answer = 0
        self._disagreements = 0
        self._kept: list[Disagreement] = []
        if set(challenger.classes) != set(champion.classes) or challenger.spec != champion.spec:
            self._give_up("it has other classes or another input than the job's model")

    def see(self, pixels: npt.NDArray[np.uint8], places: Sequence[int], answers: Predictions) -> None:
        """Classifies one batch as well: uint8 (n, *spec.shape), where the images are in the chunk, and what
        the job's model said of them. Raises nothing but what is the chunk's own: its time is up.
        """
        challenger = self._challenger
        if challenger is None:
            return
        started = time.monotonic()
        try:
            with showing_the_time_limit():
                theirs = challenger.predict(pixels)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # whatever it is, no image may pay for it
            self._give_up(repr(error))
            return
        self._compare(places, answers, theirs)
        self._seconds -= time.monotonic() - started
        if self._seconds < 0:
            self._give_up("it is too slow")

    def result(self) -> Shadowed | None:
        """What came of it; None where it gave up."""
        if self._challenger is None:
            return None
        if self._without_answer:
            logger.warning("challenger %s had no answer for %d images", self._model_id, self._without_answer)
        return Shadowed(self._model_id, self._images, self._disagreements, self._kept)

    def _compare(self, places: Sequence[int], ours: Predictions, theirs: Predictions) -> None:
        assert self._challenger is not None  # noqa: S101 -- tells the type checker
        names = self._challenger.classes
        both = zip(
            places,
            ours.class_index.tolist(),
            theirs.class_index.tolist(),
            theirs.confidence.tolist(),
            strict=True,
        )
        for place, our, their, confidence in both:
            if their < 0:
                self._without_answer += 1
            elif our >= 0:
                self._images += 1
                if self._classes[our] != names[their]:
                    self._disagreements += 1
                    if len(self._kept) < KEPT_DISAGREEMENTS:
                        index = self._first_index + place
                        rounded = round(confidence, CONFIDENCE_DIGITS)
                        self._kept.append(Disagreement(index, names[their], rounded))

    def _give_up(self, why: str) -> None:
        logger.warning("challenger %s is not compared: %s", self._model_id, why)
        self._challenger = None
