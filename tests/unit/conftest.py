"""What tests of single modules share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fail, instead of hanging, where something that blocks is opened."""

    def give_up(_number: int, _frame: object) -> None:
        raise AssertionError("opened something that blocks")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
