"""Text from outside, made fit for the ledger."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def is_plain(name: str) -> bool:
    """Return whether a name has no control characters.

    Nobody could type them, and PostgreSQL rejects U+0000.
    """
    return not any(unicodedata.category(each) == "Cc" for each in name)


def all_storable(names: Iterable[str]) -> list[str]:
    """Return many names, each as `storable` returns it.

    Nearly all can be stored unchanged, and one check finds that out for all of them.
    """
    names = list(names)
    together = "".join(names)
    if together.isascii() and "\0" not in together:
        return names
    return list(map(storable, names))


def storable(name: str) -> str:
    r"""Return the name in a form that every database accepts: valid UTF-8 without U+0000.

    Bytes that are not UTF-8 appear as \xNN.
    """
    if not name.isascii():
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte, so not from a file system
            encoded = name.encode("utf-8", "backslashreplace")
        name = encoded.decode("utf-8", "backslashreplace")
    return name.replace("\0", "\ufffd")
