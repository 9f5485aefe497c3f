"""The copies of corrected images in the store: removing those that no correction is about, and finding them.

Who corrects puts the copy there, then stores the row, and then looks for the copy once more; who removes one
asks for rows before and after, and puts it back. Whoever comes last leaves a row with its copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from jobs.files import unfinished
from jobs.ledger import Ledger
from jobs.ledger.corrections import COPIES, correction_key, without_correction
from jobs.store import Store

#: Copies that the ledger is asked about by one statement: it is as long for one as for all of these.
_PAGE_COPIES: Final = 500

#: And how many bytes of them are held meanwhile, to be put back.
_PAGE_BYTES: Final = 64 * 1024 * 1024

_SHA256: Final = re.compile("[0-9a-f]{64}")


def stray_copies(ledger: Ledger, store: Store, *, before: float) -> Iterator[list[str]]:
    """The names of copies that were written before that time, in seconds since 1970, and are for nothing:
    those that no correction is about, and parts of one. A page at a time. Raises Unavailable.
    """
    names = [name for name in store.files(COPIES) if _SHA256.fullmatch(unfinished(name) or name)]
    for start in range(0, len(names), _PAGE_COPIES):
        with ledger.reading() as connection:
            unneeded = without_correction(connection, names[start : start + _PAGE_COPIES])
        # Their age last: who corrects such an image at this moment has just made its copy anew. One whose age
        # the store does not tell stays.
        ages = {name: store.written_at(correction_key(name)) for name in unneeded}
        if strays := [name for name, written in ages.items() if written is not None and written < before]:
            yield strays


def remove_copies(ledger: Ledger, store: Store, image_sha256s: Iterable[str]) -> None:
    """Removes copies that no correction needs. Raises Unavailable."""
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
                _put_back(ledger, store, removed)
                removed, held = {}, 0
    finally:  # also where the store went away halfway
        _put_back(ledger, store, removed)


def _put_back(ledger: Ledger, store: Store, removed: dict[str, bytes]) -> None:
    """Somebody may have corrected the same bytes since the ledger was asked, and looked for the copy while it
    was there. Who stores the row after this looks for it later still (`labelmill.correcting`).
    """
    if not removed:
        return
    with ledger.reading() as connection:
        unneeded = set(without_correction(connection, removed))
    for sha256, data in removed.items():
        if sha256 not in unneeded:
            store.put(correction_key(sha256), data)
