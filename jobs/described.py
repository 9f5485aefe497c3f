"""Enumerations whose members say what they mean, for people who read the reference."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class DescribedEnum(StrEnum):
    """Strings with a meaning, written as `DONE = "done", "every image has an outcome"`."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Self:
        """Return a member that is its value, with its meaning."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member
