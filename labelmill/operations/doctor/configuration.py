"""The settings and the state folder: whether they contradict each other, or cannot be used."""

from __future__ import annotations

import math
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from jobs.settings import ENV_PREFIX, SOFT_TIME_LIMIT_SHARE, Settings
from labelmill.operations.doctor.findings import Finding, ok, problem, warning


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Check for settings that contradict each other: the time limits, and the addresses of the services.

    Malformed settings are errors of every command, and so are misspelled names.
    """
    yield _image_seconds(settings)
    yield _reach(settings)


def _image_seconds(settings: Settings) -> Finding:
    limit, soft = settings.image_seconds, settings.soft_time_limit
    if limit < soft:
        return ok(f"an image can take {limit:g} s, its chunk {soft:g} s")
    longer = math.ceil(2 * limit / SOFT_TIME_LIMIT_SHARE)
    return warning(
        f"an image can take {limit:g} s, but its chunk only {soft:g} s",
        fix=f"{ENV_PREFIX}IMAGE_SECONDS={soft / 4:g}, or everywhere {ENV_PREFIX}LEASE_SECONDS={longer}",
    )


def _reach(settings: Settings) -> Finding:
    """Check that all services are reachable from other machines if one is on another machine."""
    reachable = {
        "LEDGER_URL": _is_remote(make_url(settings.ledger).host),
        "BROKER_URL": _is_remote(urlsplit(settings.broker).hostname),
        # A folder can be one that many machines share.
        "STORE_URL": settings.store_url is not None,
    }
    if not (reachable["LEDGER_URL"] or reachable["BROKER_URL"]):
        return ok("ledger and broker are on this machine")
    missing = [ENV_PREFIX + name for name, remote in reachable.items() if not remote]
    if not missing:
        return ok("other machines can reach ledger, broker and store")
    return warning(
        f"other machines cannot reach {' and '.join(missing)}, but use the other services",
        fix=" ".join(f"{name}=..." for name in missing) + " for every process, reachable from every machine",
    )


def _is_remote(host: str | None) -> bool:
    """Return whether a URL's host is another machine. Without a host it is a file or a Unix socket."""
    return bool(host) and host not in ("localhost", "::1") and not str(host).startswith(("127.", "/"))


def check_home(settings: Settings) -> Iterator[Finding]:
    """Check that this user can use the state folder, and that no other user can."""
    home = settings.home
    chmod = f"chmod 700 {shlex.quote(str(home))}"
    if not _is_usable(home):
        fix = f"{ENV_PREFIX}HOME=a folder of your own, or {chmod}"
        yield problem(f"{home} is not a folder that you can write", fix=fix)
    elif not home.exists():
        yield ok(f"{home} does not exist yet; the first command creates it")
    elif (mode := stat.S_IMODE(home.stat().st_mode)) & 0o022:
        yield problem(f"other users can write {home} (mode {mode:o})", fix=chmod)
    elif mode & 0o077:
        yield warning(f"other users can read {home} (mode {mode:o})", fix=chmod)
    else:
        yield ok(f"only you can use {home}")


def _is_usable(home: Path) -> bool:
    """Return whether this user can write into the state folder, or create it."""
    try:
        existing = next(folder for folder in (home, *home.parents) if folder.exists())
    except OSError:  # a folder above it cannot be entered
        return False
    return existing.is_dir() and os.access(existing, os.R_OK | os.W_OK | os.X_OK)
