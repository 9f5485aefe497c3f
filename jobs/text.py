"""Text from outside that goes into the ledger."""

from __future__ import annotations


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
