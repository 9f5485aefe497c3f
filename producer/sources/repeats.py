"""Find repeats among millions of values, with eight bytes of memory for each."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Final

_GROUPS: Final = 1024


class Repeats:
    """Counts values that were added before. It knows only their hashes, of 64 bits."""

    def __init__(self) -> None:
        # Grouped by their last bits, so that only one group at a time needs the memory of Python's integers.
        self._groups = [array("q") for _ in range(_GROUPS)]

    def add(self, value: str | bytes) -> None:
        """Add a value."""
        hashed = hash(value)
        self._groups[hashed % _GROUPS].append(hashed)

    def count(self) -> int:
        """Return how many values were there before."""
        return sum(len(group) - len(set(group)) for group in self._groups)

    def hashes(self) -> set[int]:
        """Return the hashes of the values that were added more than once."""
        return {hashed for group in self._groups for hashed, number in Counter(group).items() if number > 1}
