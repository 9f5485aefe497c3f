"""Timings: how long each stage of a claim takes."""

from __future__ import annotations

import time

import pytest

from worker.predicting.timings import Timings


def test_a_stage_has_the_seconds_of_all_its_pieces() -> None:
    # given two stages that alternate
    timings = Timings()
    for _ in range(2):
        with timings.timed("decode"):
            time.sleep(0.02)
        with timings.timed("predict"):
            time.sleep(0.1)
    with timings.timed("record"):
        time.sleep(0.02)

    # then each has its own seconds, in the order in which they began, and they add up to the total
    seconds = timings.seconds()
    assert list(seconds) == ["decode", "predict", "record", "total"]
    assert seconds["decode"] >= 0.04
    assert seconds["predict"] >= 0.2
    assert seconds["decode"] + seconds["predict"] + seconds["record"] == pytest.approx(
        seconds["total"], abs=0.05
    )
    assert timings.of("decode", "predict", "fetch") == pytest.approx(
        seconds["decode"] + seconds["predict"], abs=0.002
    )
    assert timings.longest() == "predict"

    # and the ledger's counters get the same
    spent = timings.spent()
    assert {name: round(value, 3) for name, value in spent.stages.items()} | {"total": 0} == seconds | {
        "total": 0
    }
    assert spent.began <= time.perf_counter() - seconds["total"] + 0.1

    # and a trace gets each stage's first beginning and last end
    decode, predict = timings.stages["decode"], timings.stages["predict"]
    assert timings.began <= decode.began <= predict.began <= decode.ended <= predict.ended


def test_a_stage_that_an_error_ends_has_ended() -> None:
    timings = Timings()
    assert timings.longest() == ""
    with pytest.raises(KeyError), timings.timed("read"):
        raise KeyError
    assert timings.stages["read"].ended >= timings.stages["read"].began
    assert timings.longest() == "read"
