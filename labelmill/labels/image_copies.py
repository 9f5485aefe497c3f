"""Find and remove copies of corrected images that no correction needs.

A correction writes the copy, stores its row, and then checks that the copy is still there. While a copy is
removed, no row can be stored. So a row was either seen by the removal, or finds its copy missing and writes
it again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from jobs.files import unfinished
from jobs.ledger import Ledger
from jobs.ledger.learning.corrections import COPIES, correction_key, lock_corrections, without_correction
from jobs.storage.store import Store

#: How many copies one query asks about: it takes as long for one copy as for all of these.
_PAGE_COPIES: Final = 500

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
    for sha256 in dict.fromkeys(image_sha256s):
        # One at a time: corrections wait for this transaction, and a store may be slow.
        with ledger.transaction() as connection:
            lock_corrections(connection)
            if without_correction(connection, [sha256]):
                store.remove(correction_key(sha256))
