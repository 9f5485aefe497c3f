"""Threads that do something at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How long the threads may take to start.
START_SECONDS: Final = 30.0


def at_once(step: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Take the step for all items at the same moment, each in a thread; return the results in order."""
    start = threading.Barrier(len(items), timeout=START_SECONDS)

    def take(item: Item) -> Result:
        start.wait()
        return step(item)

    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(take, items))
