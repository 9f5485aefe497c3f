"""The store: whether it keeps what it is given, and has room."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jobs.errors import SettingsError, Unavailable
from jobs.ids import new_id
from jobs.settings import Settings
from jobs.store import Store
from labelmill.doctor.disk import check_space
from labelmill.doctor.findings import Area, Finding
from labelmill.doctor.home import SEE_HOME, can_be_used
from labelmill.looking import words_of

_area = Area("store")

_PROBE: Final = b"written by `labelmill doctor`, which removes it"


def check_store(settings: Settings) -> Iterator[Finding]:
    """Writes, reads and removes one small object; where the store is a folder, looks at its disk."""
    try:
        store = Store(settings.store)
    except (SettingsError, Unavailable) as error:
        yield _area.problem(
            words_of(error, settings), fix="LABELMILL_STORE_URL, or install the package it names"
        )
        return
    if store.folder is not None and not store.folder.exists():
        yield _no_folder(store.folder, settings)
    else:
        yield _probe(store, settings)
    if store.folder is not None:
        yield check_space(_area, store.folder)


def _no_folder(folder: Path, settings: Settings) -> Finding:
    if settings.store_url is None:
        if not can_be_used(settings.home):
            return _area.problem("there is none, and none can be made in the state folder", fix=SEE_HOME)
        return _area.ok("there is none yet; the first model or submission makes it")
    return _area.warning(
        f"{folder} is not there, and would be made: is its disk mounted?",
        fix=f"mount it, or mkdir -m 700 {shlex.quote(str(folder))}",
    )


def _probe(store: Store, settings: Settings) -> Finding:
    folder = f"doctor-{new_id()}"
    key = f"{folder}/probe"
    try:
        store.put(key, _PROBE)
        kept = store.get(key)
        store.remove_folder(folder)
    except (Unavailable, OSError) as error:
        return _area.problem(words_of(error, settings), fix=_fix(store))
    if kept != _PROBE:
        return _area.problem("gives back something else than it was given", fix=_fix(store))
    return _area.ok("keeps what it is given: written, read and removed")


def _fix(store: Store) -> str:
    if store.folder is None:
        return (
            "LABELMILL_STORE_URL, and the credentials that its package reads: all of read, write and delete"
        )
    name = shlex.quote(str(store.folder))
    return f"ls -ld {name}, df -h {name}: it has to be writable for this user, with room on its disk"
