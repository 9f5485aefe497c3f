"""The object store: whether it returns what was written to it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from jobs.errors import SettingsError, Unavailable
from jobs.ids import new_id
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.operations.doctor.findings import Finding, ok, problem, warning
from labelmill.operations.probes import redacted_message

_PROBE: Final = b"written by `labelmill doctor`, which removes it"


def check_store(settings: Settings) -> Iterator[Finding]:
    """Write, read and remove one small object. Do not create the store's folder."""
    try:
        store = Store(settings.store)
    except (SettingsError, Unavailable) as error:
        fix = "LABELMILL_STORE_URL, or install the package that it needs"
        yield problem(redacted_message(error, settings), fix=fix)
        return
    folder = store.folder
    if folder is None or folder.exists():
        yield _probe(store, settings)
    elif settings.store_url is not None:
        yield warning(
            f"{folder} does not exist and would be created: is its disk mounted?",
            fix=f"mount it, or mkdir -m 700 {shlex.quote(str(folder))}",
        )
    else:
        yield ok("does not exist yet; the first model or submission creates it")


def _probe(store: Store, settings: Settings) -> Finding:
    folder = f"doctor-{new_id()}"
    key = f"{folder}/probe"
    if store.folder is None:
        fix = "LABELMILL_STORE_URL, and credentials that can read, write and delete"
    else:
        fix = f"make it writable, with free space: ls -ld {shlex.quote(str(store.folder))}; df -h"
    try:
        store.put(key, _PROBE)
        stored = store.get(key)
        store.remove_folder(folder)
    except (Unavailable, OSError) as error:
        return problem(redacted_message(error, settings), fix=fix)
    if stored != _PROBE:
        return problem("returns other bytes than were written", fix=fix)
    return ok("an object was written, read and removed")
