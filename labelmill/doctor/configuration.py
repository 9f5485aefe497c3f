"""The settings and the state folder: whether they contradict each other, or cannot be used."""

from __future__ import annotations

import math
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from jobs.errors import SettingsError
from jobs.settings import ENV_PREFIX, SOFT_TIME_LIMIT_SHARE, Settings, unknown_variables
from labelmill.doctor.findings import Area, Finding
from labelmill.probes import redacted_message
from worker.schedule import beat_schedule

_settings = Area("settings")
_home = Area("home")

#: The fix that other areas name if the state folder is the cause.
SEE_HOME: Final = "see home, above"


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Check for unknown names, limits that contradict each other, unreachable parts and a wrong schedule."""
    unknown = unknown_variables()
    if unknown:
        fixes = [
            f"unset {name}" + (f", or did you mean {meant}?" if meant else "")
            for name, meant in unknown.items()
        ]
        yield _settings.warning(f"no setting, so without effect: {', '.join(unknown)}", fix="; ".join(fixes))
    else:
        yield _settings.ok(f"every {ENV_PREFIX}* variable is a setting")
    yield _image_seconds(settings)
    yield _reach(settings)
    yield _schedule(settings)


def _image_seconds(settings: Settings) -> Finding:
    limit, soft = settings.image_seconds, settings.soft_time_limit
    if limit < soft:
        return _settings.ok(f"an image can take {limit:g} s, its chunk {soft:g} s")
    longer = math.ceil(2 * limit / SOFT_TIME_LIMIT_SHARE)
    return _settings.warning(
        f"an image can take {limit:g} s, but its chunk only {soft:g} s",
        fix=f"{ENV_PREFIX}IMAGE_SECONDS={soft / 4:g}, or everywhere {ENV_PREFIX}LEASE_SECONDS={longer}",
    )


def _reach(settings: Settings) -> Finding:
    """Check that all parts are reachable from other machines if one part is on another machine."""
    elsewhere = {
        "LEDGER_URL": _is_elsewhere(make_url(settings.ledger).host),
        "BROKER_URL": _is_elsewhere(urlsplit(settings.broker).hostname),
        # A folder can be one that many machines share.
        "STORE_URL": settings.store_url is not None,
    }
    if not (elsewhere["LEDGER_URL"] or elsewhere["BROKER_URL"]):
        return _settings.ok("ledger and broker are on this machine")
    missing = [ENV_PREFIX + name for name, reached in elsewhere.items() if not reached]
    if not missing:
        return _settings.ok("other machines can reach ledger, broker and store")
    return _settings.warning(
        f"other machines cannot reach {' and '.join(missing)}, but use the other parts",
        fix=" ".join(f"{name}=..." for name in missing) + " for every process, reachable from every machine",
    )


def _is_elsewhere(host: str | None) -> bool:
    """Return whether a URL's host is another machine. Without a host it is a file or a Unix socket."""
    return bool(host) and host not in ("localhost", "::1") and not str(host).startswith(("127.", "/"))


def _schedule(settings: Settings) -> Finding:
    try:
        schedule = beat_schedule(settings)
    except SettingsError as error:
        return _settings.problem(
            redacted_message(error, settings), fix="LABELMILL_RETRAIN_CRON='0 3 * * 0', or never"
        )
    return _settings.ok(f"retraining at {settings.retrain_cron} (cron, UTC)" if schedule else "no retraining")


def check_home(settings: Settings) -> Iterator[Finding]:
    """Check that this user owns and can use the state folder, and that no other user can read it."""
    home, me = settings.home, os.geteuid()
    own = "LABELMILL_HOME=a folder of your own"
    chmod = f"chmod 700 {shlex.quote(str(home))}"
    if not can_be_used(home):
        yield _home.problem(f"{home} is not a folder that you can write", fix=f"{own}, or {chmod}")
    elif not home.exists():
        yield _home.ok(f"{home} does not exist yet; the first command makes it")
    elif (found := home.stat()).st_uid != me:
        yield _home.problem(
            f"{home} belongs to user {found.st_uid}, you are {me}",
            fix=f"run as user {found.st_uid}, or {own}",
        )
    elif (mode := stat.S_IMODE(found.st_mode)) & 0o077:
        level = _home.problem if mode & 0o022 else _home.warning
        yield level(
            f"other users can {'write' if mode & 0o022 else 'read'} {home} (mode {mode:o})", fix=chmod
        )
    else:
        yield _home.ok(f"{home} is yours alone")


def can_be_used(home: Path) -> bool:
    """Return whether this user can write into the state folder, or make it."""
    try:
        there = next(folder for folder in (home, *home.parents) if folder.exists())
    except OSError:  # a folder above it cannot be entered
        return False
    return there.is_dir() and os.access(there, os.R_OK | os.W_OK | os.X_OK)
