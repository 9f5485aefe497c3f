"""The deadline of an image interrupts that image's decoding and nothing else."""

from __future__ import annotations

import signal
import time

import pytest

from jobs.errors import ErrorCode, ImageError
from worker.predicting.deadline import Deadline


def compute(seconds: float) -> None:
    """Keep a core busy for that long, by the thread's own clock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_an_image_that_computes_for_too_long_is_interrupted() -> None:
    with Deadline(0.1) as deadline:
        deadline.begin()
        with pytest.raises(ImageError, match=r"longer than 0\.1 s") as caught:
            compute(60)
    assert caught.value.code == ErrorCode.TIMEOUT


def test_each_image_has_its_own_time() -> None:
    with Deadline(0.2) as deadline:
        for _ in range(4):
            deadline.begin()
            compute(0.1)
            deadline.end()


def test_a_process_that_stands_still_costs_no_image() -> None:
    # On a busy or suspended machine, time passes without computing, as in a sleep.
    with Deadline(0.1) as deadline:
        deadline.begin()
        time.sleep(0.5)
        deadline.end()


def test_work_between_two_images_is_not_interrupted() -> None:
    with Deadline(0.1) as deadline:
        deadline.begin()
        deadline.end()
        compute(0.4)


def test_the_alarm_is_gone_afterwards() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with Deadline(0.1):
        pass
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
