"""The state folder: whose it is, and who else may look into it."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from jobs.settings import Settings
from labelmill.doctor.findings import Area, Finding

_area = Area("home")


def check_home(settings: Settings) -> Iterator[Finding]:
    """Owner and permissions of LABELMILL_HOME and, where they are ours to make, of what lies in it."""
    home = settings.home
    try:
        found = home.stat()
    except FileNotFoundError:
        yield _area.ok(f"{home} is not there yet; the first command makes it")
        return
    except OSError as error:  # something above it is no folder, or may not be entered
        yield _area.problem(f"{home}: {error.strerror}", fix="LABELMILL_HOME=a folder of your own")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield _area.problem(f"{home} is no folder", fix="LABELMILL_HOME=a folder of your own")
        return
    yield _owner(home, found)
    yield _permissions(home, found)


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
