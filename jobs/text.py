"""Text from outside that goes into the ledger."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def is_plain(name: str) -> bool:
    """Whether a name has no control characters: nobody could type it, and PostgreSQL does not take U+0000."""
    return not any(unicodedata.category(each) == "Cc" for each in name)


def all_storable(names: Iterable[str]) -> list[str]:
    """Many names, each as `storable` gives it: nearly all are stored as they are, which is asked once."""
    names = list(names)
    together = "".join(names)
    if together.isascii() and "\0" not in together:
        return names
    return list(map(storable, names))


def storable(name: str) -> str:
    r"""The name in a form that every database takes: valid UTF-8 without U+0000.

    Bytes that are no UTF-8 appear as \xNN.
    """
    if not name.isascii():
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte: it came from no file system
            encoded = name.encode("utf-8", "backslashreplace")
        name = encoded.decode("utf-8", "backslashreplace")
    return name.replace("\0", "\ufffd")
