"""The state folder: whose it is, and who else may look into it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from jobs.settings import Settings
from labelmill.doctor.findings import Area, Finding

_area = Area("home")

#: What helps where the state folder is the trouble, and another area needs it.
SEE_HOME: Final = "what is said of home"


def check_home(settings: Settings) -> Iterator[Finding]:
    """Owner and permissions of LABELMILL_HOME and, where they are ours to make, of what lies in it."""
    home = settings.home
    try:
        found = home.stat()
    except FileNotFoundError:
        yield _to_be_made(home)
        return
    except OSError as error:  # something above it is no folder, or may not be entered
        yield _area.problem(f"{home}: {error.strerror}", fix="LABELMILL_HOME=a folder of your own")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield _area.problem(f"{home} is no folder", fix="LABELMILL_HOME=a folder of your own")
        return
    yield _owner(home, found)
    if not can_be_used(home):
        yield _area.problem(
            f"you may not write into {home} (mode {stat.S_IMODE(found.st_mode):o}, or its disk is read-only)",
            fix=f"chmod 700 {shlex.quote(str(home))}, or LABELMILL_HOME=a folder of your own",
        )
    yield _permissions(home, found)


def can_be_used(home: Path) -> bool:
    """Whether this user may write into the state folder, or make it where there is none."""
    try:
        there = next(folder for folder in (home, *home.parents) if folder.exists())
    except OSError:  # what is above it may not be entered
        return False
    return there.is_dir() and os.access(there, os.R_OK | os.W_OK | os.X_OK)


def _to_be_made(home: Path) -> Finding:
    if can_be_used(home):
        return _area.ok(f"{home} is not there yet; the first command makes it")
    return _area.problem(
        f"{home} is not there, and you may not make it", fix="LABELMILL_HOME=a folder of your own"
    )


def _owner(home: Path, found: os.stat_result) -> Finding:
    me = os.geteuid()
    if found.st_uid != me:
        return _area.problem(
            f"{home} belongs to user {found.st_uid}, you are {me}: "
            "what one of you writes the other cannot read",
            fix=f"run labelmill as user {found.st_uid}, or LABELMILL_HOME=a folder of your own",
        )
    return _area.ok(f"{home} is yours")


def _permissions(home: Path, found: os.stat_result) -> Finding:
    mode = stat.S_IMODE(found.st_mode)
    fix = f"chmod 700 {shlex.quote(str(home))}"
    if mode & 0o022:
        return _area.problem(f"others may write into {home} (mode {mode:o}), so into the ledger", fix=fix)
    if mode & 0o055:
        return _area.warning(f"others may look into {home} (mode {mode:o})", fix=fix)
    return _area.ok(f"nobody else may look into it (mode {mode:o})")
