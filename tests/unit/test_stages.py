"""Where a chunk's time goes."""

from __future__ import annotations

import time

import pytest
from worker.predicting.stages import Stages


def test_a_stage_inside_another_is_not_counted_for_it() -> None:
    # given a stage in which another one comes twice
    stages = Stages()
    with stages.timed("decode"):
        time.sleep(0.05)
        for _ in range(2):
            with stages.timed("predict"):
                time.sleep(0.2)
    with stages.timed("record"):
        time.sleep(0.05)

    # then each has its own seconds, and together they are what went by
    seconds = stages.seconds()
    assert list(seconds) == ["decode", "predict", "record", "total"]
    assert 0.05 <= seconds["decode"] < 0.4 <= seconds["predict"]
    parts = seconds["decode"] + seconds["predict"] + seconds["record"]
    assert parts == pytest.approx(seconds["total"], abs=0.1)

    # and of the one inside it is known that it was
    assert stages.found["predict"].nested == stages.found["predict"].seconds
    assert stages.found["decode"].nested == stages.found["record"].nested == 0.0
    assert stages.longest() == "predict"

    # and the times in which they began and ended
    decode, predict = stages.found["decode"], stages.found["predict"]
    assert stages.began <= decode.began <= predict.began <= predict.ended <= decode.ended


def test_a_stage_that_is_broken_off_has_ended() -> None:
    stages = Stages()
    with pytest.raises(KeyError), stages.timed("read"):
        raise KeyError
    assert stages.found["read"].ended >= stages.found["read"].began
