"""Find and remove copies of corrected images that no correction needs.

A correction writes the copy, stores its row, and then checks that the copy is still there. A removal looks
for rows before and after it removes a copy, and puts the copy back if there is one. So every row keeps its
copy, whichever of the two ends last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from jobs.files import unfinished
from jobs.ledger import Ledger
from jobs.ledger.learning.corrections import COPIES, correction_key, without_correction
from jobs.storage.store import Store

#: How many copies the ledger is asked about at once: that takes as long for one as for all of these.
_PAGE_COPIES: Final = 500

#: How many bytes of removed copies are held in memory, in case they must be put back.
_PAGE_BYTES: Final = 64 * 1024 * 1024

_SHA256: Final = re.compile("[0-9a-f]{64}")


def stray_copies(ledger: Ledger, store: Store, *, before: float) -> Iterator[list[str]]:
    """Yield the names of stray copies that were written before this time, one page at a time.

    A copy is stray if no correction is about it; so are parts of an unfinished copy. `before` is in seconds
    since 1970. Raises Unavailable.
    """
    names = [name for name in store.files(COPIES) if _SHA256.fullmatch(unfinished(name) or name)]
    for start in range(0, len(names), _PAGE_COPIES):
        with ledger.reading() as connection:
            unneeded = without_correction(connection, names[start : start + _PAGE_COPIES])
        # The age is read last: a correction of such an image may have just written its copy again. If the
        # store does not know the age, the copy stays.
        ages = {name: store.written_at(correction_key(name)) for name in unneeded}
        if strays := [name for name, written in ages.items() if written is not None and written < before]:
            yield strays


def remove_copies(ledger: Ledger, store: Store, image_sha256s: Iterable[str]) -> None:
    """Remove those of these copies that no correction needs. Raises Unavailable."""
    names = list(dict.fromkeys(image_sha256s))
    for start in range(0, len(names), _PAGE_COPIES):
        with ledger.reading() as connection:
            unneeded = without_correction(connection, names[start : start + _PAGE_COPIES])
        _remove(ledger, store, unneeded)


def _remove(ledger: Ledger, store: Store, unneeded: list[str]) -> None:
    removed: dict[str, bytes] = {}
    held = 0
    try:
        for sha256 in unneeded:
            key = correction_key(sha256)
            try:
                removed[sha256] = store.get(key)
            except FileNotFoundError:
                continue
            held += len(removed[sha256])
            store.remove(key)
            if held > _PAGE_BYTES:
                _restore(ledger, store, removed)
                removed, held = {}, 0
    finally:  # also if the store fails halfway
        _restore(ledger, store, removed)


def _restore(ledger: Ledger, store: Store, removed: dict[str, bytes]) -> None:
    """Write those of the removed copies again that a correction needs by now.

    The same bytes may have been corrected since the ledger was read, and the correction may have checked for
    its copy before the removal. A row stored after this checks for its copy later
    (`labelmill.labels.correcting`).
    """
    if not removed:
        return
    with ledger.reading() as connection:
        unneeded = set(without_correction(connection, removed))
    for sha256, data in removed.items():
        if sha256 not in unneeded:
            store.put(correction_key(sha256), data)
