"""Ids of jobs, chunks and training runs: short, opaque, and sorted by creation time."""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

#: Crockford's base 32: no letter that can be mistaken for a digit.
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"

#: 16 characters hold 80 bits: 48 for milliseconds since 1970, 32 random.
ID_LENGTH: Final = 16
_PATTERN: Final = re.compile(rf"[{_ALPHABET}]{{{ID_LENGTH}}}")


def new_id(*, after: str | None = None) -> str:
    """Return a new id. One made in a later millisecond sorts after it.

    With `after`, it also sorts after that id, even if the clocks of the two hosts differ.
    """
    number = time.time_ns() // 1_000_000 << 32 | secrets.randbits(32)
    if after is not None:
        number = max(number, _number(after) + 1)
    return _text(number)


def first_id(seconds: float) -> str:
    """Return the lowest id that can be made at this time, in seconds since 1970."""
    return _text(int(seconds * 1000) << 32)


def is_id(text: object) -> bool:
    """Return whether this is an id as `new_id` makes them."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None


def id_range(beginning: str) -> tuple[str, str] | None:
    """Return the lowest and the highest id with this beginning, or None if no id can begin so."""
    first, last = (beginning.ljust(ID_LENGTH, character) for character in (_ALPHABET[0], _ALPHABET[-1]))
    return (first, last) if is_id(first) else None


def id_seconds(identifier: str) -> float:
    """Return when the id was made, in seconds since 1970, by the clock of the host that made it."""
    return (_number(identifier) >> 32) / 1000


def _text(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (ID_LENGTH - 1), -1, -5))


def _number(identifier: str) -> int:
    number = 0
    for character in identifier:
        number = number << 5 | _ALPHABET.index(character)
    return number
