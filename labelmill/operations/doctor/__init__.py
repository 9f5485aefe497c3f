"""`labelmill doctor`: one module for each area. Each check is a generator of findings.

The areas are checked in parallel, so that one that hangs does not hide the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from jobs.settings import Settings
from labelmill.operations.doctor.api import check_api
from labelmill.operations.doctor.broker import check_broker
from labelmill.operations.doctor.configuration import check_home, check_settings
from labelmill.operations.doctor.findings import Finding, Level, problem
from labelmill.operations.doctor.ledger import check_ledger
from labelmill.operations.doctor.models import check_models
from labelmill.operations.doctor.store import check_store
from labelmill.operations.doctor.work import check_jobs, check_training
from labelmill.operations.probes import redacted_message

__all__ = ["Finding", "Level", "examine"]

Check = Callable[[Settings], Iterator[Finding]]

AREAS: Final[dict[str, Check]] = {
    "settings": check_settings,
    "home": check_home,
    "broker": check_broker,
    "ledger": check_ledger,
    "store": check_store,
    "models": check_models,
    "training": check_training,
    "jobs": check_jobs,
    "api": check_api,
}

#: Maximum time for all checks. Name servers and network disks have no limit of their own.
TIMEOUT_SECONDS: Final = 20.0


def examine(settings: Settings, *, timeout: float = TIMEOUT_SECONDS) -> dict[str, list[Finding]]:
    """Return the findings of each area, in order. An area that fails or hangs is a finding, too."""
    found: dict[str, list[Finding]] = {name: [] for name in AREAS}
    threads = {
        name: threading.Thread(target=_run, args=(check, settings, found[name]), daemon=True)
        for name, check in AREAS.items()
    }
    deadline = time.monotonic() + timeout
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():  # it is abandoned, with a list that only it uses
            fix = f"check whether the host or disk of the {name} responds"
            found[name] = [*found[name], problem(f"no answer within {timeout:g} s", fix=fix)]
    return found


def _run(check: Check, settings: Settings, found: list[Finding]) -> None:
    try:
        for finding in check(settings):
            found.append(finding)
    except Exception as error:  # an unknown exception of a package must not hide the other areas
        reason = f"{type(error).__name__}: {redacted_message(error, settings)}"
        found.append(problem(f"the check failed: {reason}", fix="read the error message"))
